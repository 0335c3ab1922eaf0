"""Figures of CSI's calls, and the port where Prometheus and kubelet ask. Any thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app


class Calls:
    """CSI's calls, by method and code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter("stillframe_csi_calls", "CSI calls", ["method", "code"], registry=registry)
        self._seconds = Histogram(
            "stillframe_csi_call_duration_seconds", "How long CSI calls took", ["method", "code"], registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )  # fmt: skip

    def observe(self, method: str, code: str, seconds: float) -> None:
        """A call has ended."""
        self._count.labels(method, code).inc()
        self._seconds.labels(method, code).observe(seconds)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection: kubelet kills a plugin whose /healthz waits behind somebody else. IPv6 and IPv4."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        """Without the look-up of the host's name that HTTPServer makes: it may wait for a name server."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10.0
    """Seconds without a byte after which a connection is closed."""

    def handle(self) -> None:
        """A peer that is silent or goes away is no error."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes are not logged."""


def serve(port: int, registry: CollectorRegistry, why_not: Callable[[], str | None]) -> int:
    """Serve /metrics, /healthz (the process is alive) and /readyz (`why_not` has no objection) from threads; the port."""
    metrics: Any = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start)  # type: ignore[no-any-return]
        reason = None if path == "/healthz" else why_not() if path == "/readyz" else f"there is no {path}"
        status = "200 OK" if reason is None else "503 Service Unavailable" if path == "/readyz" else "404 Not Found"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{reason or 'ok'}\n".encode()]

    server = make_server("", port, answer, server_class=_Server, handler_class=_Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server.server_port
