"""Several volumes cut at one instant, and volumes made of what another one is now."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.core import messages
from driver.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, StillframeError
from driver.core.sizes import GIB, MIB
from driver.host import disks
from tests.engines import Engine, engine, run, unmount
from tests.oracle import LoggedWriter, fill, read_device, state_in
from tests.soak.killer import children
from tests.waiting import wait_until

SIZE = 32 * MIB


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


class Alternating:
    """Writes n = 1, 2, 3, … to the first block of one volume, then of the next: no instant has them further apart than 1."""

    def __init__(self, devices: list[str]) -> None:
        self._fds = [os.open(device, os.O_RDWR | os.O_DIRECT) for device in devices]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with mmap.mmap(-1, 4096) as page:
            number = 0
            while not self._stop.is_set():
                number += 1
                page[:8] = number.to_bytes(8, "little")
                for fd in self._fds:
                    os.pwrite(fd, page, 0)

    def __enter__(self) -> Alternating:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(150)
        for fd in self._fds:
            os.close(fd)


def test_a_group_is_cut_at_one_instant(one: Engine) -> None:
    devices = [one.volume(name, SIZE) for name in ("a", "b", "c")]
    for round_ in range(5):
        with Alternating(devices):
            time.sleep(0.2)
            members = one.call("snapshot.create_group", group=f"g{round_}", volumes=["a", "b", "c"])["snapshots"]
            time.sleep(0.1)
        assert len({member["created"] for member in members}) == 1
        numbers = {}
        for member in members:
            assert one.wait_snapshot(member["name"])["state"] == "committed"
            made = f"r-{round_}-{member['volume']['name']}"
            first = read_device(one.restore(member["name"], made), SIZE)[:8]
            numbers[member["volume"]["name"]] = int.from_bytes(first, "little")
        assert numbers["a"] >= numbers["b"] >= numbers["c"] >= numbers["a"] - 1, numbers
    again = one.call("snapshot.create_group", group="g0", volumes=["c", "b", "a"])["snapshots"]
    assert {member["state"] for member in again} == {"committed"}
    with pytest.raises(AlreadyExists, match="of other volumes"):
        one.call("snapshot.create_group", group="g0", volumes=["a", "b"])


def test_a_group_is_made_whole_or_not_at_all(one: Engine) -> None:
    one.arguments = (*one.arguments, "--upload-rate", "1Mi")
    one.stop()
    one.start()
    device = one.volume("a", SIZE)
    one.volume("b", SIZE)
    fill(device, SIZE)
    one.call("snapshot.create", volume="a", name="busy")
    with pytest.raises(FailedPrecondition, match="busy"):
        one.call("snapshot.create_group", group="g", volumes=["b", "a"])
    assert [item["name"] for item in one.call("snapshot.list")["snapshots"]] == ["busy"]
    one.call("snapshot.create", volume="b", name="alone")


def test_a_group_that_comes_to_nothing_lets_go_of_its_volumes(one: Engine) -> None:
    """A file system that cannot be held still is found out when the volumes were opened for the cut."""
    for name in ("a", "b"):
        one.volume(name, SIZE)
        one.call("volume.detach", name=name)
    call = {"call": "snapshot.create_group", "args": {"group": "g", "volumes": ["a", "b"]}}
    with socket.socket(socket.AF_UNIX) as connection, open("/proc/self/stat") as cannot:
        connection.connect(str(one.state / "run/engine.sock"))
        with pytest.raises(StillframeError):
            messages.call(connection, call, [cannot.fileno()])
    assert one.call("engine.info")["processes"]["volumes"] == {}
    assert one.call("snapshot.create_group", group="g", volumes=["a", "b"])["snapshots"]


def wait_available(made: Engine, volume: str) -> None:
    wait_until(lambda: made.call("volume.show", name=volume)["state"] != "restoring", told=made.log.read_text)


def test_a_clone_is_the_volume_at_its_cut(one: Engine) -> None:
    device = one.volume("v", SIZE)
    fill(device, 20 * MIB)
    start = bytes(read_device(device, SIZE))
    with LoggedWriter(device, SIZE, seed=5) as writer:
        time.sleep(0.2)
        first = writer.acknowledged
        shown = one.call("volume.clone", source="v", name="copy", size_bytes=SIZE + MIB)
        last = writer.begun
        assert shown["size_bytes"] == SIZE + MIB
        wait_available(one, "copy")
    copied = read_device(one.call("volume.attach", name="copy")["device"], SIZE + MIB)
    assert state_in(copied[:SIZE], start, writer.log, first, last) is not None
    assert not any(copied[SIZE:])
    assert one.call("snapshot.list")["snapshots"] == []
    one.call("volume.clone", source="copy", name="copy-of-copy")
    wait_available(one, "copy-of-copy")


def test_a_clone_outlives_its_processes() -> None:
    with engine("--upload-rate", "8Mi") as one:
        device = one.volume("v", 4 * SIZE)
        fill(device, 4 * SIZE)
        content = read_device(device, 4 * SIZE)
        one.call("volume.clone", source="v", name="copy")
        for victim in ("transfer", "service", "transfer"):
            wait_until(lambda: children(one.call("engine.info")["processes"]["transfer"]))  # what copies
            killed = one.call("engine.info")["processes"][victim]
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: one.wait_ready().call("engine.info")["processes"][victim] != killed)  # noqa: B023
        wait_available(one, "copy")
        assert read_device(one.call("volume.attach", name="copy")["device"], 4 * SIZE) == content


def test_a_clone_that_loses_its_engine_is_gone(one: Engine) -> None:
    one.stop()
    one.start(None, "--upload-rate", "1Mi")
    device = one.volume("v", SIZE)
    fill(device, SIZE)
    job = one.call("volume.clone", source="v", name="copy")["restore_job"]
    one.kill()
    one.start()
    wait_until(lambda: "copy" not in [volume["name"] for volume in one.call("volume.list")["volumes"]])
    with pytest.raises(FailedPrecondition, match="before the clone was made"):
        one.wait_job(job)
    one.call("volume.clone", source="v", name="copy")
    wait_available(one, "copy")


def test_a_clone_cannot_be_smaller(one: Engine) -> None:
    one.call("volume.create", name="v", size_bytes=SIZE)
    with pytest.raises(InvalidArgument):
        one.call("volume.clone", source="v", name="copy", size_bytes=SIZE - MIB)
    with pytest.raises(NotFound):
        one.call("volume.show", name="copy")


@pytest.fixture
def on_xfs(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose state folder is on an xfs, which can share blocks."""
    image, folder = tmp_path / "image", tmp_path / "host"
    with image.open("wb") as file:
        file.truncate(1024 * MIB)
    run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
    folder.mkdir()
    run("mount", "-o", "loop", str(image), str(folder))
    made = Engine(folder / "state", ("--grace", "2"))
    made.log = tmp_path / "log"
    (tmp_path / "repository").mkdir()
    made.repository("local", f"file://{tmp_path}/repository")
    try:
        made.start()
        yield made
    except BaseException:
        print(made.log.read_text())
        raise
    finally:
        made.clean()
        unmount(folder)


def used_bytes(made: Engine) -> int:
    os.sync()
    status = os.statvfs(made.state)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_thin_clones_share_blocks_where_the_file_system_can(on_xfs: Engine) -> None:
    """At one instant of a volume that is written and snapshotted meanwhile; afterwards neither sees the other's writes."""
    device = on_xfs.volume("v", 4 * SIZE, provisioning="thin")
    fill(device, 4 * SIZE)
    start = bytes(read_device(device, 4 * SIZE))
    with LoggedWriter(device, 4 * SIZE, seed=11) as writer:
        on_xfs.call("snapshot.create", volume="v", name="meanwhile")
        time.sleep(0.2)

        def clone() -> tuple[int, int, int, dict[str, Any]] | None:
            first, before = writer.acknowledged, used_bytes(on_xfs)
            with contextlib.suppress(FailedPrecondition):  # what is not shared in half a second wants a session of its own
                shown = on_xfs.call("volume.clone", source="v", name="copy", size_bytes=5 * SIZE)
                if shown["state"] == "available":
                    return first, writer.begun, before, shown
                wait_available(on_xfs, "copy")
                on_xfs.call("volume.delete", name="copy")
            return None

        first, last, before, shown = wait_until(clone)
        assert shown["source_volume"] == on_xfs.call("volume.show", name="v")["id"]
        assert used_bytes(on_xfs) - before < 2 * SIZE, "less than a copy"
        writer.go_on()
    other = on_xfs.call("volume.attach", name="copy")["device"]
    copied = read_device(other, 5 * SIZE)
    assert state_in(copied[: 4 * SIZE], start, writer.log, first, last) is not None
    assert not any(copied[4 * SIZE :])
    now = bytes(read_device(device, 4 * SIZE))
    run("dd", "if=/dev/zero", f"of={other}", "bs=1M", "count=128", "oflag=direct", "status=none")
    assert read_device(device, 4 * SIZE) == now
    assert on_xfs.wait_snapshot("meanwhile")["state"] == "committed"


def test_shared_blocks_are_of_one_instant_however_far_apart(on_xfs: Engine) -> None:
    """A volume of many GiB, each of which is shared by itself: the last write is never there without the one before."""
    size = 64 * GIB
    device = on_xfs.volume("v", size, provisioning="thin")
    stop, written, shared = threading.Event(), [0], 0

    def write() -> None:
        fd, number = os.open(device, os.O_RDWR | os.O_DIRECT), 0
        with mmap.mmap(-1, 4096) as page:
            while not stop.is_set():
                number += 1
                page[:8] = number.to_bytes(8, "little")
                for offset in (0, size - 4096):
                    os.pwrite(fd, page, offset)
                written.append(number)
        os.close(fd)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for turn in range(6):
            count = written[-1]
            wait_until(lambda: written[-1] > count)  # noqa: B023
            copy = on_xfs.call("volume.clone", source="v", name=f"copy-{turn}")
            shared += copy["state"] == "available"
            wait_available(on_xfs, f"copy-{turn}")  # what is not shared in half a second is copied
            with (on_xfs.state / "volumes" / copy["id"] / "disk").open("rb") as file:
                first = int.from_bytes(file.read(8), "little")
                file.seek(size - 4096)
                last = int.from_bytes(file.read(8), "little")
            assert last <= first <= last + 1 and last > 0
    finally:
        stop.set()
        writing.join(150)
    assert shared


def test_thick_clones_have_blocks_of_their_own(on_xfs: Engine) -> None:
    device = on_xfs.volume("v", 4 * SIZE)
    fill(device, 4 * SIZE)
    before = used_bytes(on_xfs)
    on_xfs.call("volume.clone", source="v", name="copy")
    wait_available(on_xfs, "copy")
    assert used_bytes(on_xfs) - before > 3 * SIZE
    assert read_device(on_xfs.call("volume.attach", name="copy")["device"], 4 * SIZE) == read_device(device, 4 * SIZE)


def test_what_cannot_be_shared_or_not_in_time_is_said(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as one, (tmp_path / "b").open("w+b") as other:
        one.truncate(3 * GIB)
        other.truncate(3 * GIB)
        assert disks.share(other.fileno(), one.fileno(), 3 * GIB, seconds=-1) is False
