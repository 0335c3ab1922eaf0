"""An engine that dies while it holds a file system still: who waits to write to it must not wait for ever."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi import csi_pb2
from driver.core.sizes import MIB
from driver.host import freeze
from tests.engines import engine
from tests.plugins import Plugin, mount_capability, plugin


def by_health(one: Plugin, volume: str, target: Path) -> None:
    one.controller.ControllerListVolumeHealth(csi_pb2.ControllerListVolumeHealthRequest())


def by_unpublish(one: Plugin, volume: str, target: Path) -> None:
    one.unpublish(volume, target)


def by_publish(one: Plugin, volume: str, target: Path) -> None:
    one.publish(volume, "pod")


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
@pytest.mark.parametrize("let_go", [by_health, by_unpublish, by_publish])
def test_who_writes_to_a_frozen_file_system_is_let_go(
    fs_type: str, let_go: Callable[[Plugin, str, Path], None]
) -> None:
    with engine() as own, plugin(own) as one:
        capability = mount_capability(fs_type)
        volume = one.create("still", 64 * MIB, capability)
        staged = one.stage(volume, capability)
        target = one.publish(volume, "pod", capability)
        fd = os.open(staged, os.O_RDONLY)
        freeze.freeze(fd)  # as its guard does, which is killed with the engine
        os.close(fd)

        def write() -> None:
            with contextlib.suppress(OSError):
                (target / "file").write_text("waits")

        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        time.sleep(0.3)
        assert writing.is_alive()
        own.kill()
        own.start()
        if let_go is by_publish:
            one.publish(volume, "pod", capability)
        else:
            let_go(one, volume, target)
        writing.join(150)
        assert not writing.is_alive(), "it waits for ever"
