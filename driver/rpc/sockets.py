"""Where a plugin listens on its host, and how long it runs."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import grpc

from driver.core.errors import FailedPrecondition, InvalidArgument


def check_endpoint(endpoint: str) -> Path:
    """The socket's path of unix:///path or unix:/path. Raises InvalidArgument."""
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    if not endpoint.startswith("unix:") or not path.startswith("/"):
        raise InvalidArgument(f"{endpoint!r} is no endpoint", "use unix:///path/of/csi.sock")
    return Path(path)


def listen(server: grpc.Server, path: Path) -> None:
    """Serve on the unix socket `path`, mode 0600. Raises FailedPrecondition if that cannot be had."""
    _clear(path)
    old = os.umask(0o077)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        wrong = f"cannot listen at {path}: {error}"
        raise FailedPrecondition(wrong, "use a short path that may be written") from None
    finally:
        os.umask(old)
    server.start()


def _clear(path: Path) -> None:
    """Remove a dead predecessor's socket. Raises FailedPrecondition if somebody listens there."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as other:
            if other.connect_ex(str(path)) == 0:
                raise FailedPrecondition(f"another plugin listens at {path}", "stop it first")
        path.unlink()


def until_told(told: threading.Event) -> None:
    """Wait for SIGTERM, SIGINT or `told`. Main thread only."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    while not told.wait(1.0):
        pass
