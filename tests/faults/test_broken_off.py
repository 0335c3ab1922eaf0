"""A process dies between two steps that belong together: its successor, or the next call, does the second."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from driver.core.errors import NotFound, StillframeError
from driver.core.sizes import MIB
from driver.host.loop import LoopDevice
from tests.engines import Engine, run
from tests.faults.stops import engine_that_stops
from tests.oracle import fill, read_device
from tests.waiting import wait_until

SIZE = 32 * MIB


def devices(made: Engine) -> list[LoopDevice]:
    """The loop devices on the engine's volumes, noted or not."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = []
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):  # it went away
            if (entry / "loop/backing_file").read_text().startswith(f"{made.state}/run/disks/"):
                number, sequence = entry.name.removeprefix("loop"), (entry / "diskseq").read_text()
                found.append(LoopDevice(int(number), int(sequence), boot))
    return found


def begin_attach(made: Engine) -> threading.Thread:
    """Of a volume `v`, new; it may be broken off."""
    made.call("volume.create", name="v", size_bytes=SIZE)

    def attach() -> None:
        with contextlib.suppress(StillframeError, OSError):
            made.call("volume.attach", name="v")

    attaching = threading.Thread(target=attach)
    attaching.start()
    return attaching


@pytest.mark.parametrize("at", ["return loop.py _configure", "call loop.py _keep"])
@pytest.mark.parametrize("call", ["volume.detach", "volume.delete", "stop"])
def test_an_attach_that_was_broken_off_leaves_nothing(call: str, at: str) -> None:
    """The device is made, and nobody lived to note it, or to say that it is to stay."""
    with engine_that_stops(at) as (made, stopped):
        attaching = begin_attach(made)
        stopped()
        (left,) = devices(made)
        os.kill(made.call("engine.info")["pid"], signal.SIGKILL)  # the keeper kills the helper that made the device
        attaching.join()
        made.wait_ready()
        wait_until(lambda: not left.exists())
        assert made.call("volume.show", name="v")["attached"] is False
        if call == "stop":
            made.stop()
        else:
            made.call(call, name="v")
            assert os.listdir(made.state / "dev") == []
        assert os.listdir(made.state / "run/disks") == []


@pytest.mark.parametrize("at", ["return loop.py _configure", "call loop.py _keep"])
def test_an_attach_that_dies_with_the_keeper_leaves_nothing(at: str) -> None:
    with engine_that_stops(at) as (made, stopped):
        attaching = begin_attach(made)
        stopped()
        (left,) = devices(made)
        made.kill()
        attaching.join()
        wait_until(lambda: not left.exists())
        made.start()
        assert [*(made.state / "run/loops").iterdir(), *(made.state / "dev").iterdir()] == []
        assert len(read_device(made.call("volume.attach", name="v")["device"], SIZE)) == SIZE


def test_a_growth_whose_record_was_saved_is_finished_by_the_next_snapshot() -> None:
    """Its device has the old size until then; all that is in the snapshot is of one size."""
    with engine_that_stops("call volumes.py _resize") as (made, stopped):
        device = made.volume("v", SIZE)

        def grow() -> None:
            with contextlib.suppress(StillframeError, OSError):
                made.call("volume.grow", name="v", size_bytes=2 * SIZE)

        growing = threading.Thread(target=grow)
        growing.start()
        os.kill(stopped(), signal.SIGKILL)
        growing.join()
        made.wait_ready()
        assert (device_bytes(device), made.call("volume.show", name="v")["size_bytes"]) == (SIZE, 2 * SIZE)
        made.call("snapshot.create", volume="v", name="s")
        shown = made.wait_snapshot("s")
        assert (shown["state"], shown["size_bytes"], device_bytes(device)) == ("committed", 2 * SIZE, 2 * SIZE), shown


def device_bytes(device: str) -> int:
    return int(run("blockdev", "--getsize64", device))


def is_restoring(made: Engine, volume: str) -> bool:
    return bool(made.call("volume.show", name=volume)["state"] == "restoring")


@pytest.mark.parametrize("at", ["call watcher.py _clone_ended", "call table.py forget"])
def test_a_clone_whose_end_was_noted_is_available(at: str) -> None:
    with engine_that_stops(at) as (made, stopped):
        device = made.volume("v", SIZE)
        fill(device, 32 * MIB)
        content = read_device(device, SIZE)
        made.call("volume.clone", source="v", name="copy")
        os.kill(stopped(), signal.SIGKILL)
        made.wait_ready()
        wait_until(lambda: not is_restoring(made, "copy"))
        assert read_device(made.call("volume.attach", name="copy")["device"], SIZE) == content
        wait_until(lambda: not list((made.state / "sessions").iterdir()))
        made.call("snapshot.create", volume="v", name="s")
        assert made.wait_snapshot("s")["state"] == "committed"


def test_a_clone_whose_failure_was_noted_is_gone() -> None:
    with engine_that_stops("call watcher.py _clone_ended", "--upload-rate", "1Mi") as (made, stopped):
        device = made.volume("v", SIZE)
        fill(device, 32 * MIB)
        disk = made.state / "volumes" / made.call("volume.show", name="v")["id"] / "disk"
        made.call("volume.clone", source="v", name="copy")
        os.truncate(disk, MIB)
        os.kill(stopped(), signal.SIGKILL)
        made.wait_ready()
        with pytest.raises(NotFound):
            wait_until(lambda: not is_restoring(made, "copy"))
        wait_until(lambda: not list((made.state / "sessions").iterdir()))
