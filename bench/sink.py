"""`python -m bench.sink GATE`: as much of S3 as a snapshot needs, for bytes that nobody will read; prints its port.

It stands for a store on another machine, whose work is not this machine's: a real server takes a third to a whole core
here at 100 MB/s, which the volume under measurement would miss. Bodies above 1 MiB are dropped in the kernel
(MSG_TRUNC, tcp(7)) and only their sizes kept; smaller objects are kept and can be read. Conditional PUT is honoured.
No signature is checked. One bucket, one thread a connection.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from bench.gate import Gate

KEPT_BYTES_MAX: Final = 1 << 20
_XML: Final = '<?xml version="1.0" encoding="UTF-8"?>'


class Objects:
    """What the bucket holds: key to size, tag and, if it is small, the bytes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards `held`
        self.held: dict[str, tuple[int, str, bytes | None]] = {}

    def put(self, key: str, size: int, body: bytes | None, only_new: bool) -> str | None:
        """The object's tag, or None if the key is taken and must not be."""
        tag = hashlib.md5(body if body is not None else key.encode(), usedforsecurity=False).hexdigest()
        with self.lock:
            if only_new and key in self.held:
                return None
            self.held[key] = (size, tag, body)
        return tag


class Handler(BaseHTTPRequestHandler):
    """One connection. `server` is the Sink."""

    disable_nagle_algorithm = True  # head and body are written apart; a client that waits to acknowledge would add 40 ms
    protocol_version = "HTTP/1.1"
    rbufsize = 0  # nothing of a body is read with the header
    server: Sink

    def _key(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        return key, parse_qs(parts.query, keep_blank_values=True)

    def _answer(self, status: int, body: bytes = b"", tag: str = "", length: int | None = None) -> None:
        self.server.gate.wait_open()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Last-Modified", formatdate(usegmt=True))
        if tag:
            self.send_header("ETag", f'"{tag}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        self._answer(status, f"{_XML}<Error><Code>{code}</Code><Message>{status.phrase}</Message></Error>".encode())

    def _drop(self, length: int) -> None:
        """Take a body without copying it."""
        while length:
            wanted = min(length, self.server.gate.slice_bytes())
            taken = self.connection.recv_into(self.server.scratch, wanted, socket.MSG_TRUNC)
            if not taken:
                raise ConnectionResetError("the client went away within a body")
            length -= taken
            self.server.gate.passed(taken)

    def _keep(self, length: int) -> bytes:
        body = bytearray()
        while len(body) < length:
            part = self.connection.recv(length - len(body))
            if not part:
                raise ConnectionResetError("the client went away within a body")
            body += part
        self.server.gate.passed(length)
        return bytes(body)

    def handle_expect_100(self) -> bool:
        self.server.gate.wait_open()
        return super().handle_expect_100()

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        key, _ = self._key()
        body = None
        if length <= KEPT_BYTES_MAX:
            body = self._keep(length)
        else:
            self._drop(length)
        if not key:
            self._answer(HTTPStatus.OK)
            return
        tag = self.server.objects.put(key, length, body, self.headers.get("If-None-Match") == "*")
        if tag is None:
            self._refuse(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
        else:
            self._answer(HTTPStatus.OK, tag=tag)

    def do_GET(self) -> None:
        key, query = self._key()
        if not key:
            self._list(query.get("prefix", [""])[0])
            return
        with self.server.objects.lock:
            found = self.server.objects.held.get(key)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "NoSuchKey")
        elif found[2] is None:
            self._refuse(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented")
        else:
            self._answer(HTTPStatus.OK, found[2], found[1])

    def do_HEAD(self) -> None:
        key, _ = self._key()
        with self.server.objects.lock:
            found = self.server.objects.held.get(key, (0, "", None) if not key else None)
        if found is None:
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            self._answer(HTTPStatus.OK, tag=found[1], length=found[0])

    def do_DELETE(self) -> None:
        key, _ = self._key()
        with self.server.objects.lock:
            self.server.objects.held.pop(key, None)
        self._answer(HTTPStatus.NO_CONTENT)

    def _list(self, prefix: str) -> None:
        with self.server.objects.lock:
            found = sorted((key, held[0]) for key, held in self.server.objects.held.items() if key.startswith(prefix))
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, size in found
        )
        head = f"<Name>bench</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
        listing = f"<ListBucketResult>{head}<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        self._answer(HTTPStatus.OK, f"{_XML}{listing}".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Sink(ThreadingHTTPServer):
    """The server; `scratch` is memory that nothing is written to."""

    daemon_threads = True

    def __init__(self, gate: Gate) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gate = gate
        self.objects = Objects()
        self.scratch = bytearray(1 << 20)


def main() -> None:
    server = Sink(Gate(Path(sys.argv[1])))
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
