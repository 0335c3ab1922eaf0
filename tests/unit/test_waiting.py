"""How a CreateVolume waits for a volume that is being made: without an engine, on a clock of the test's own."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from csi import csi_pb2
from driver.core import messages
from driver.core.errors import Busy
from driver.core.ids import new_id
from driver.core.sizes import MIB
from driver.node.here import Here, NodeEngine
from driver.node.volumes import VolumeCalls
from tests.plugins import mount_capability


class Call:
    """A call with a minute left, of which only sleeping takes anything."""

    left = 60.0
    thread = threading.current_thread()

    def time_remaining(self) -> float:
        return self.left

    def is_active(self) -> bool:
        return True

    def sleep(self, seconds: float) -> None:
        """In the place of time.sleep, also for the threads of others."""
        if threading.current_thread() is self.thread:
            self.left -= seconds


def test_an_engine_that_makes_a_volume_is_asked_about_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = {
        "name": "pvc-1", "id": new_id(), "size_bytes": 64 * MIB, "provisioning": "thick", "source_snapshot": None,
        "source_volume": None, "state": "restoring", "restore_job": new_id(),
    }  # fmt: skip
    asked: list[Any] = []
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "run/engine.sock"))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(messages.receive(connection))
                    messages.send(connection, {"result": volume})

        serving = threading.Thread(target=serve)
        serving.start()
        call = Call()
        context: Any = call
        monkeypatch.setattr(time, "sleep", call.sleep)
        request = csi_pb2.CreateVolumeRequest(
            name="pvc-1", volume_capabilities=[mount_capability()],
            capacity_range=csi_pb2.CapacityRange(required_bytes=64 * MIB),
        )  # fmt: skip
        with pytest.raises(Busy):
            VolumeCalls(Here("node-1", NodeEngine(tmp_path, "node-1"))).CreateVolume(request, context)
        server.shutdown(socket.SHUT_RDWR)
        serving.join()
    assert 60 <= len(asked) <= 70
