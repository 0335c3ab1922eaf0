"""A disk that fails or is full: who asked gets the error, records stay whole, a snapshot fails and never lies."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import OutOfSpace
from driver.core.ids import snapshot_id
from driver.core.sizes import MIB
from tests.cli.test_commands import stillframe
from tests.engines import Engine, engine, mounted, run
from tests.oracle import fill, read_device
from tests.power.logdisk import LogDisk, logdisk
from tests.waiting import wait_until

SIZE = 64 * MIB


@contextlib.contextmanager
def engine_on(host: Path, folder: Path, *arguments: str) -> Iterator[Engine]:
    """An engine whose state folder is on the file system `host`; its repository is elsewhere."""
    (folder / "repository").mkdir(exist_ok=True)
    made = Engine(host / "state", ("--grace", "2", *arguments))
    made.log = folder / "engine.log"
    made.repository("local", f"file://{folder}/repository")
    try:
        made.start()
        yield made
    except BaseException:
        print(made.log.read_text())
        raise
    finally:
        made.clean()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="stillframe-test-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def broken(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[LogDisk, Engine]]:
    """An engine on a disk of which parts can be broken. Its parameter is the upload rate."""
    with logdisk(folder, 512 * MIB) as disk:
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk.device)
        rate = ("--upload-rate", getattr(request, "param", "16Mi"))
        with mounted(disk.device) as host, engine_on(host, folder, *rate) as made:
            yield disk, made


@contextlib.contextmanager
def small(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A small file system."""
    image = folder / "small"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    run("mkfs.ext4", "-q", "-m", "0", str(image))
    with mounted(str(image), "-o", "loop") as host:
        yield host


def backing(made: Engine, name: str) -> Path:
    return made.state / "volumes" / str(made.call("volume.show", name=name)["id"]) / "disk"


def place(file: Path) -> int:
    """Where on its disk the middle of a file lies."""
    for line in run("filefrag", "-v", "-b1", str(file)).splitlines():
        found = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line)
        if found and int(found[1]) <= SIZE // 2 <= int(found[2]):
            return int(found[3]) + SIZE // 2 - int(found[1])
    raise AssertionError("the file has no block there")


def write(device: str, offset: int, content: bytes) -> None:
    """Directly. Raises OSError."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, len(content))
        buffer[:] = content
        assert os.pwrite(fd, buffer, offset) == len(content)
    finally:
        os.close(fd)


def test_a_write_error_reaches_who_wrote_and_nobody_else(broken: tuple[LogDisk, Engine]) -> None:
    disk, made = broken
    device, other = made.volume("v", SIZE), made.volume("other", SIZE)
    fill(device, SIZE)
    at = place(backing(made, "v"))
    disk.break_range("write", at, at + 4096)
    with pytest.raises(OSError, match="Input/output") as failed:
        write(device, SIZE // 2, b"x" * 4096)
    assert failed.value.errno == errno.EIO
    write(device, 0, b"y" * 4096)
    write(other, SIZE // 2, b"z" * 4096)
    assert made.call("volume.show", name="v")["attached"]
    disk.repair()
    write(device, SIZE // 2, b"x" * 4096)
    assert read_device(device, SIZE)[SIZE // 2 : SIZE // 2 + 4096] == b"x" * 4096


def test_a_chunk_that_cannot_be_read_fails_the_snapshot(broken: tuple[LogDisk, Engine]) -> None:
    disk, made = broken
    device = made.volume("v", SIZE)
    fill(device, SIZE)
    at = place(backing(made, "v"))
    disk.break_range("read", at, at + 4096)
    made.call("snapshot.create", volume="v", name="s")
    shown = made.wait_snapshot("s")
    assert shown["state"] == "failed"
    assert "'v'" in shown["error"]["message"] and "Input/output error" in shown["error"]["message"]
    with pytest.raises(OSError, match="Input/output"):
        read_device(device, SIZE)
    write(device, 0, b"y" * 4096)
    disk.repair()
    made.call("snapshot.create", volume="v", name="again")
    assert made.wait_snapshot("again")["state"] == "committed"


@pytest.mark.parametrize("broken", ["1Mi"], indirect=True)
def test_a_pre_image_that_cannot_be_read_fails_the_snapshot_not_the_write(broken: tuple[LogDisk, Engine]) -> None:
    disk, made = broken
    device = made.volume("v", SIZE)
    fill(device, SIZE)
    at = place(backing(made, "v"))
    made.call("snapshot.create", volume="v", name="s")
    disk.break_range("read", at, at + 4096)
    write(device, SIZE // 2, b"x" * 4096)
    disk.repair()  # the sweep reads it without an error: what was there at the cut is lost all the same
    shown = made.wait_snapshot("s")
    assert shown["state"] == "failed", "the write came before the sweep"
    assert read_device(device, SIZE)[SIZE // 2 : SIZE // 2 + 4096] == b"x" * 4096


def test_a_thin_volume_on_a_full_disk_gets_an_error_and_works_again_with_room(folder: Path) -> None:
    with small(folder, 160 * MIB) as host, engine_on(host, folder) as made:
        device = made.volume("v", 512 * MIB, provisioning="thin")
        ballast = host / "ballast"
        run("fallocate", "-l", str(os.statvfs(host).f_bavail * os.statvfs(host).f_frsize - 16 * MIB), str(ballast))
        with pytest.raises(OSError) as failed:
            for number in range(64):
                write(device, number * MIB, b"a" * MIB)
        assert failed.value.errno in (errno.ENOSPC, errno.EIO)
        assert number >= 8
        assert bytes(read_device(device, MIB)) == b"a" * MIB
        ballast.unlink()
        write(device, number * MIB, b"b" * MIB)
        made.kill()
        made.start()
        device = made.call("volume.attach", name="v")["device"]
        assert read_device(device, 512 * MIB)[number * MIB : (number + 1) * MIB] == b"b" * MIB


def test_a_clone_that_outgrows_the_disk_says_so_and_leaves_nothing(folder: Path) -> None:
    with small(folder, 256 * MIB) as host, engine_on(host, folder) as made:
        fill(made.volume("v", SIZE, provisioning="thin"), SIZE)
        left = os.statvfs(host).f_bavail * os.statvfs(host).f_frsize
        run("fallocate", "-l", str(left - 16 * MIB), str(host / "ballast"))
        code, _, error = stillframe(made.state, "volume", "clone", "v", "copy")
        assert code == 6 and "writing the new volume" in error, error
        assert [volume["name"] for volume in made.call("volume.list")["volumes"]] == ["v"]
        wait_until(lambda: os.statvfs(host).f_bavail * os.statvfs(host).f_frsize > 15 * MIB)
        (host / "ballast").unlink()
        assert stillframe(made.state, "volume", "clone", "v", "copy")[0] == 0


def test_a_thick_volume_that_does_not_fit_is_refused_and_leaves_nothing(folder: Path) -> None:
    with small(folder, 160 * MIB) as host, engine_on(host, folder) as made:
        free = os.statvfs(host).f_bavail
        with pytest.raises(OutOfSpace):
            made.call("volume.create", name="v", size_bytes=512 * MIB)
        assert made.call("volume.list")["volumes"] == []
        assert os.statvfs(host).f_bavail >= free - 16


def test_a_spill_file_that_cannot_grow_fails_the_snapshot_and_says_so(folder: Path) -> None:
    """Memory for one session is 32 MiB here, of which 16 MiB hold pre-images; the disk has room for few more."""
    options = ("--session-memory", "32Mi", "--upload-rate", "1Mi")
    with small(folder, 256 * MIB) as host, engine_on(host, folder, *options) as made:
        device = made.volume("v", 128 * MIB)
        fill(device, 128 * MIB)
        content = read_device(device, 128 * MIB)
        left = os.statvfs(host).f_bavail * os.statvfs(host).f_frsize
        run("fallocate", "-l", str(left - 20 * MIB), str(host / "ballast"))
        made.call("snapshot.create", volume="v", name="s")
        for number in reversed(range(128)):
            write(device, number * MIB, bytes([number]) * MIB)
        shown = made.wait_snapshot("s")
        assert (shown["state"], shown["error"]["kind"]) == ("failed", "OutOfSpace"), shown
        assert "No space left" in shown["error"]["message"]
        assert shown["session"]["spilled"] > 0
        assert shown["session"]["stage"] == "full"
        assert read_device(device, 128 * MIB) == b"".join(bytes([number]) * MIB for number in range(128)) != content
        # the spill file's room was given back
        wait_until(lambda: os.statvfs(host).f_bavail * os.statvfs(host).f_frsize > 15 * MIB)


def test_a_state_folder_without_room_refuses_a_snapshot_before_its_cut(folder: Path) -> None:
    with small(folder, 160 * MIB) as host, engine_on(host, folder) as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        with contextlib.suppress(OSError), (host / "ballast").open("wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass
        with contextlib.suppress(OSError), (host / "more").open("wb", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        with pytest.raises(OutOfSpace):
            made.call("snapshot.create", volume="v", name="s")
        assert made.call("volume.show", name="v")["snapshot_in_progress"] is None
        assert not list((folder / "repository").glob("snapshots/*/pending.json"))
        write(device, 0, b"y" * 4096)
        (host / "ballast").unlink()
        made.call("snapshot.create", volume="v", name="s")
        assert made.wait_snapshot("s")["state"] == "committed"


def descriptors(pid: int, name: str) -> int:
    """How many descriptors of a process are of a file that is named so."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed at this moment
            found += name in os.readlink(fd)
    return found


def test_a_sender_that_cannot_be_started_costs_no_descriptors() -> None:
    """The file of index entries cannot be opened for a while; the snapshot is committed when it can."""
    with engine("--upload-rate", "4Mi") as made:
        fill(made.volume("v", SIZE), SIZE)
        made.call("snapshot.create", volume="v", name="s")
        spool = made.state / "sessions" / snapshot_id("s") / "spool"
        wait_until(lambda: made.call("snapshot.show", snapshot="s")["uploaded_bytes"])
        away = spool.rename(spool.with_name("away"))
        spool.mkdir()
        seen = made.call("engine.info")
        os.kill(seen["processes"]["transfer"], signal.SIGKILL)
        wait_until(lambda: made.log.read_text().count("Is a directory") >= 1)
        before = descriptors(seen["pid"], "stillframe-packs")
        wait_until(lambda: made.log.read_text().count("Is a directory") >= 4)
        wait_until(lambda: descriptors(seen["pid"], "stillframe-packs") <= before)  # an attempt has one for a moment
        spool.rmdir()
        away.rename(spool)
        assert made.wait_snapshot("s")["state"] == "committed"
