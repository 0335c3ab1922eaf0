"""A proxy between a sender and a real S3 server, which injects failures. Signatures stay right: the Host header is kept."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PASS = "pass"
DROP_ANSWER = "drop the answer"
DROP = "drop the request"
Action = str | int
"""PASS, DROP_ANSWER (the server did what was asked), DROP, or the HTTP status to answer with."""


class Proxy:
    """`decide` says what to do with a request, by its method and path; it may do things by itself, too."""

    def __init__(self, port: int) -> None:
        self.decide: Callable[[str, str], Action] = lambda method, path: PASS
        self.seen: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path))
                action = proxy.decide(self.command, self.path)
                if isinstance(action, int):
                    self._refuse(action)
                    return
                if action is not DROP:
                    status, headers, content = proxy.forward(self, port, body)
                if action is not PASS:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                        self.send_header(name, value)
                length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content)

            def _refuse(self, status: int) -> None:
                code = {403: "AccessDenied", 404: "NoSuchBucket", 503: "SlowDown"}.get(status, "InternalError")
                content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any  # noqa: N815 (names that http.server calls)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a killed sender's connection

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @staticmethod
    def forward(handler: BaseHTTPRequestHandler, port: int, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server: status, headers, content."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            if name.lower() not in ("expect", "connection"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), content

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def count(self, method: str, part: str) -> int:
        """Requests so far."""
        return sum(1 for seen, path in self.seen if seen == method and part in path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
