"""What the keeper answers too late is not kept: nobody would close its descriptors."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from driver.core import messages
from driver.core.errors import EngineUnavailable
from driver.engine import clients
from driver.engine.clients import KeeperClient


def descriptors_of(file: Path) -> int:
    """How many descriptors of this process are of that file."""
    return sum(os.path.realpath(fd) == str(file) for fd in Path("/proc/self/fd").iterdir())


def test_descriptors_that_come_too_late_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    client = KeeperClient(theirs.detach(), lambda: None)
    file = tmp_path / "memory"
    is_given_up = threading.Event()

    def keeper() -> None:
        with file.open("wb") as memory:
            for fds in ([memory.fileno()], []):
                received = messages.receive(ours)
                assert received is not None
                is_given_up.wait()
                messages.send(ours, {"id": received[0]["id"], "result": {}}, fds)

    answering = threading.Thread(target=keeper)
    with ours:
        answering.start()
        monkeypatch.setattr(clients, "_CALL_SECONDS", 0.05)
        with pytest.raises(EngineUnavailable, match="has not done take"):
            client.take("v", ["memory"])
        is_given_up.set()
        monkeypatch.undo()
        client.list()  # answered after what came too late
        answering.join()
        assert descriptors_of(file) == 0
