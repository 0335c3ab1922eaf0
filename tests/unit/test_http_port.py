"""The port of metrics and health: nobody there holds up anybody else."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from driver.rpc import metrics


def serve(why_not: Callable[[], str | None] = lambda: None) -> int:
    return metrics.serve(0, CollectorRegistry(), why_not)


def fetch(port: int, path: str, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=150) as answer:
        return str(answer.read().decode())


def test_a_silent_connection_holds_nobody_up() -> None:
    port = serve()
    with socket.create_connection(("127.0.0.1", port)):
        assert fetch(port, "/healthz") == "ok\n"


def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", serve())) as silent:
        silent.settimeout(150)
        assert silent.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_who_asks_whether_it_is_ready_waits_alone() -> None:
    asked, answered = threading.Event(), threading.Event()

    def why_not() -> None:
        asked.set()
        answered.wait(150)

    port = serve(why_not)
    ready: list[str] = []
    waits = threading.Thread(target=lambda: ready.append(fetch(port, "/readyz")))
    waits.start()
    assert asked.wait(150)
    assert fetch(port, "/healthz") == "ok\n"
    assert not ready
    answered.set()
    waits.join(150)
    assert ready == ["ok\n"]


def test_it_is_there_by_ipv4_and_by_ipv6_where_the_kernel_has_it() -> None:
    port = serve()
    for host in ("127.0.0.1", "[::1]") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
        assert fetch(port, "/healthz", host) == "ok\n"
