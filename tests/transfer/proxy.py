"""A proxy between a sender and a real S3 server, which injects failures. Signatures stay right: the Host header is kept."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PASS = "pass"
DROP_ANSWER = "drop the answer"
DROP = "drop the request"
RESET = "reset the connection in the middle of the request's body"
STALL = "take the request and never answer"
CUT = "end the answer's body early"
ALTER = "change a bit of the answer's body"
NO_ROUTE = "answer as a proxy that knows no store"
SKEWED = "answer that the client's clock is wrong"
Action = str | int
"""One of these (with DROP_ANSWER the server did what was asked), or the HTTP status to answer with."""
_CODES = {403: "AccessDenied", 404: "NoSuchBucket", 503: "SlowDown", 507: "XMinioStorageFull"}


class Proxy:
    """`decide` says what to do with a request, by its method and path, before its body is read; `hold` is called when all of
    it is there and before the server is asked. Both may do things by themselves, too; only `hold` may take its time:
    one request at a time is decided.
    `seen` are the requests that came, `answered` those that the server has done, and how."""

    def __init__(self, port: int) -> None:
        self.decide: Callable[[str, str], Action] = lambda method, path: PASS
        self.hold: Callable[[str, str], None] = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self.answered: list[tuple[str, str, int]] = []
        self.closed = threading.Event()
        self._deciding = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                with proxy._deciding:
                    proxy.seen.append((self.command, self.path))
                    action = proxy.decide(self.command, self.path)
                length = int(self.headers.get("Content-Length") or 0)
                if action is RESET:
                    self.rfile.read(length // 2)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self._hang_up()
                    return
                body = self.rfile.read(length)
                if action is STALL:
                    proxy.closed.wait()
                    self._hang_up()
                    return
                if isinstance(action, int):
                    self._refuse(action, _CODES.get(action, "InternalError"))
                    return
                if action is NO_ROUTE:
                    self._answer(404, b"404 page not found\n")
                    return
                if action is SKEWED:
                    self._refuse(403, "RequestTimeTooSkewed")
                    return
                proxy.hold(self.command, self.path)
                if action is not DROP:
                    status, headers, content = proxy.forward(self, port, body)
                    proxy.answered.append((self.command, self.path, status))
                if action in (DROP, DROP_ANSWER):
                    self._hang_up()
                    return
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                        self.send_header(name, value)
                size = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", size)
                self.end_headers()
                if action is CUT:
                    self.wfile.write(content[: len(content) // 2])
                    self._hang_up()
                elif action is ALTER:
                    self.wfile.write(bytes([content[0] ^ 1]) + content[1:] if content else content)
                else:
                    self.wfile.write(content)

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.close()

            def _refuse(self, status: int, code: str) -> None:
                self._answer(status, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())

            def _answer(self, status: int, content: bytes) -> None:
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
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
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
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
