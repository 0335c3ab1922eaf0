"""A volume's block device is that volume's and no other's, whoever keeps it open and whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import FailedPrecondition, StillframeError
from driver.core.sizes import MIB
from tests.engines import Engine, engine, run
from tests.waiting import wait_until

SIZE = 16 * MIB


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


def mark(device: str, letter: bytes) -> None:
    """Put a letter at the device's beginning."""
    fd = os.open(device, os.O_WRONLY | os.O_SYNC)
    os.pwrite(fd, letter * 4096, 0)
    os.close(fd)


def letter_of(device: str) -> bytes:
    with open(device, "rb") as file:
        return file.read(1)


def is_let_go_of(device: str) -> bool:
    """Whether the kernel is to take the device away with its last user."""
    return Path(f"/sys/block/loop{os.minor(os.stat(device).st_rdev)}/loop/autoclear").read_text().strip() == "1"


def test_a_detach_that_fails_leaves_the_device_where_it_is(one: Engine) -> None:
    """A program that only looks at it does not claim it, so that the kernel begins to take it away."""
    device = one.volume("a", SIZE)
    mark(device, b"a")
    with open(device, "rb"), pytest.raises(FailedPrecondition, match="still has"):
        one.call("volume.detach", name="a")
    assert one.call("volume.show", name="a")["attached"] is True
    mark(one.volume("b", SIZE), b"b")
    assert one.call("volume.attach", name="a")["device"] == device
    assert letter_of(device) == b"a"
    one.call("volume.detach", name="a")
    assert not os.path.exists(device)


def test_a_detach_that_is_broken_off_leaves_the_device_where_it_is(one: Engine) -> None:
    device = one.volume("a", SIZE)
    mark(device, b"a")

    def detach() -> None:
        with contextlib.suppress(StillframeError, OSError):
            one.call("volume.detach", name="a")

    with open(device, "rb"):
        detaching = threading.Thread(target=detach)
        detaching.start()
        wait_until(lambda: is_let_go_of(device) or not detaching.is_alive())
        os.kill(one.call("engine.info")["pid"], signal.SIGKILL)
        detaching.join()
        one.wait_ready()
        assert one.call("volume.attach", name="a")["device"] == device
    mark(one.volume("b", SIZE), b"b")
    assert letter_of(device) == b"a"


def test_a_device_that_is_gone_is_made_anew(one: Engine) -> None:
    """Its number is another volume's by then."""
    device = one.volume("a", SIZE)
    mark(device, b"a")
    run("losetup", "--detach", device)
    other = one.volume("b", SIZE)
    mark(other, b"b")
    wait_until(lambda: not one.call("volume.show", name="a")["attached"])
    device = one.call("volume.attach", name="a")["device"]
    assert (letter_of(device), letter_of(other)) == (b"a", b"b")
    run("losetup", "--detach", device)
    one.call("volume.detach", name="a")
    assert not os.path.exists(device)
    device = one.call("volume.attach", name="a")["device"]
    assert letter_of(device) == b"a"
