"""A frozen file system goes on again, whoever dies and however long the work takes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import DeviceError, FailedPrecondition, Unsupported
from driver.core.sizes import MIB
from driver.host import freeze
from driver.host.filesystems import make
from driver.host.freeze import frozen, thaw
from driver.host.mounts import mount, unmount
from tests.linux.conftest import Disks, new_disks
from tests.linux.test_mounts import shut_down
from tests.waiting import wait_until

HOLD = """
import signal, sys, time
from driver.host.freeze import frozen
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
with frozen(sys.argv[1], 600):
    print("frozen", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def mounted(request: pytest.FixtureRequest) -> Iterator[str]:
    """A file system that the tests of this file share: each leaves it thawed."""
    with new_disks() as disks:
        device, path = disks.new(320 * MIB), disks.target()
        make(device, request.param)
        mount(device, path, request.param)
        yield path
        unmount(path, seconds=60)


@pytest.fixture
def target(mounted: str) -> Iterator[str]:
    yield mounted
    wait_until_it_goes_on(mounted)


def is_frozen(path: str) -> bool:
    """By whether one can freeze it: thawed at once."""
    fd = os.open(path, os.O_RDONLY)
    try:
        freeze.freeze(fd)
        thaw(fd)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def wait_until_it_goes_on(path: str) -> None:
    wait_until(lambda: not is_frozen(path))


def guards(parent: int) -> list[int]:
    """The guards that a process has."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and b"driver.host.freeze" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture
def holder(target: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds `target` frozen."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    assert process.stdout.readline() == b"frozen\n"
    yield process
    process.kill()
    process.wait()


def test_nobody_writes_while_it_is_frozen(target: str) -> None:
    with frozen(target, 60):
        assert is_frozen(target)
        writer = subprocess.Popen(["touch", f"{target}/touched"])
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.5)
        assert not os.path.exists(f"{target}/touched")
    assert writer.wait(60) == 0
    assert os.path.exists(f"{target}/touched") and not is_frozen(target) and guards(os.getpid()) == []


def test_it_goes_on_if_the_work_fails(target: str) -> None:
    with pytest.raises(ZeroDivisionError), frozen(target, 60):
        raise ZeroDivisionError
    assert not is_frozen(target)


def test_it_goes_on_when_the_one_who_froze_it_is_killed(target: str, holder: subprocess.Popen[bytes]) -> None:
    assert is_frozen(target)
    holder.kill()
    wait_until_it_goes_on(target)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_its_guard_is_not_ended_by_signals(target: str, holder: subprocess.Popen[bytes], number: int) -> None:
    (guard,) = guards(holder.pid)
    os.kill(guard, number)
    time.sleep(0.2)
    assert guards(holder.pid) == [guard] and is_frozen(target)
    holder.send_signal(number)
    wait_until_it_goes_on(target)


def test_it_goes_on_when_the_time_is_over_and_the_work_knows(target: str) -> None:
    with pytest.raises(FailedPrecondition, match="let go before"), frozen(target, 0.3):
        wait_until_it_goes_on(target)
    assert not is_frozen(target)


def test_the_work_may_write_to_it_and_is_only_late(target: str) -> None:
    with pytest.raises(FailedPrecondition, match="let go before"), frozen(target, 0.3):
        Path(target, "file").write_text("waited")


def test_it_goes_on_when_the_guard_is_killed(target: str) -> None:
    with frozen(target, 60):
        (guard,) = guards(os.getpid())
        os.kill(guard, signal.SIGKILL)
        assert is_frozen(target)
    assert not is_frozen(target)


def test_a_freeze_of_somebody_else_is_left_alone(target: str, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(FailedPrecondition, match="held still"), frozen(target, 60):
        pass
    assert is_frozen(target)


def test_what_was_left_frozen_is_thawed_at_a_start(target: str) -> None:
    assert thaw(target) is False
    fd = os.open(target, os.O_RDONLY)
    try:
        freeze.freeze(fd)
    finally:
        os.close(fd)
    assert thaw(target) is True
    assert thaw(target) is False


def test_what_cannot_be_frozen_says_so(disks: Disks) -> None:
    device, path = disks.new(320 * MIB), disks.target("dead")
    with pytest.raises(Unsupported, match="held still"), frozen("/proc", 1):
        pass
    with pytest.raises(DeviceError, match="held still"), frozen(disks.target("nothing"), 1):
        pass
    make(device, "xfs")
    mount(device, path, "xfs")
    shut_down(path)
    with pytest.raises(DeviceError, match="held still"), frozen(path, 1):
        pass
