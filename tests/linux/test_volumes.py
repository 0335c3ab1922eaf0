"""Volumes on the real kernel: FUSE, loop with direct I/O, file systems, growth, restarts."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfSpace
from driver.core.sizes import CHUNK_BYTES, MIB, TIB, VOLUME_BYTES_MAX
from driver.host import loop
from tests.engines import Engine, engine, mounted, run
from tests.oracle import fill
from tests.waiting import wait_until

FIO = ("fio", "--name=test", "--direct=1", "--ioengine=libaio", "--verify=crc32c", "--verify_fatal=1", "--minimal",
       "--verify_state_save=0")  # fmt: skip


@pytest.fixture(scope="module")
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


def test_the_device_keeps_what_is_written(one: Engine) -> None:
    device = one.volume("verify", 128 * MIB)
    run(*FIO, f"--filename={device}", "--rw=randwrite", "--bsrange=4k-1m", "--iodepth=16", "--size=128m")
    one.call("volume.detach", name="verify")
    device = one.call("volume.attach", name="verify")["device"]
    run(*FIO, f"--filename={device}", "--rw=randwrite", "--bsrange=4k-1m", "--iodepth=16", "--size=128m", "--verify_only")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("block", [512, 4096])
def test_file_systems_live_on_it(one: Engine, kind: str, block: int) -> None:
    name = f"{kind}-{block}"
    device = one.volume(name, 400 * MIB, logical_block_size=block)
    queue = Path(f"/sys/block/loop{os.minor(os.stat(device).st_rdev)}/queue")
    assert (queue / "logical_block_size").read_text().strip() == str(block)
    assert (queue / "discard_max_bytes").read_text().strip() == str(MIB)
    run(f"mkfs.{kind}", "-q", device)
    with mounted(device) as folder:
        run("cp", "-r", "/usr/lib/python3", str(folder / "copy"))
        run("fstrim", str(folder))
        run("diff", "-r", "/usr/lib/python3", str(folder / "copy"))
    run(*(("e2fsck", "-fn", device) if kind == "ext4" else ("xfs_repair", "-n", device)))
    one.call("volume.detach", name=name)
    one.call("volume.delete", name=name)


def test_a_thick_volume_stays_thick_when_it_is_discarded(one: Engine) -> None:
    device = one.volume("thick", 64 * MIB)
    run("mkfs.ext4", "-q", device)
    run("blkdiscard", "-f", device)
    assert one.call("volume.show", name="thick")["allocated_bytes"] >= 64 * MIB


def test_a_thin_volume_gives_back_what_is_discarded(one: Engine) -> None:
    device = one.volume("thin", 64 * MIB, provisioning="thin")
    fill(device, 32 * MIB)
    assert one.call("volume.show", name="thin")["allocated_bytes"] >= 32 * MIB
    run("blkdiscard", "-f", device)
    assert one.call("volume.show", name="thin")["allocated_bytes"] < MIB


def test_the_largest_volume_can_be_made_and_used(one: Engine) -> None:
    device = one.volume("largest", 8 * TIB, provisioning="thin")
    assert int(run("blockdev", "--getsize64", device)) == 8 * TIB
    fill(device, CHUNK_BYTES, 8 * TIB - CHUNK_BYTES)
    with pytest.raises(InvalidArgument, match="too large"):
        one.call("volume.create", name="larger", size_bytes=VOLUME_BYTES_MAX + 1)


def test_a_volume_grows_while_its_file_system_is_mounted(one: Engine) -> None:
    device = one.volume("grow", 320 * MIB)
    run("mkfs.xfs", "-q", device)
    with mounted(device) as folder:
        before = os.statvfs(folder).f_blocks
        one.call("volume.grow", name="grow", size_bytes=640 * MIB)
        assert int(run("blockdev", "--getsize64", device)) == 640 * MIB
        run("xfs_growfs", str(folder))
        assert os.statvfs(folder).f_blocks > 1.8 * before
    assert one.call("volume.grow", name="grow", size_bytes=640 * MIB)["size_bytes"] == 640 * MIB
    with pytest.raises(InvalidArgument, match="more than"):
        one.call("volume.grow", name="grow", size_bytes=64 * MIB)


def test_operations_may_be_repeated(one: Engine) -> None:
    first = one.call("volume.create", name="again", size_bytes=MIB)
    assert one.call("volume.create", name="again", size_bytes=MIB)["id"] == first["id"]
    with pytest.raises(AlreadyExists):
        one.call("volume.create", name="again", size_bytes=2 * MIB)
    device = one.call("volume.attach", name="again")["device"]
    assert one.call("volume.attach", name="again")["device"] == device
    assert stat.S_ISBLK(os.stat(device).st_mode)
    for _ in range(2):
        assert one.call("volume.detach", name="again")["attached"] is False
    assert not os.path.exists(device)
    one.call("volume.delete", name="again")
    with pytest.raises(NotFound):
        one.call("volume.show", name="again")


def test_what_cannot_be_is_refused_and_leaves_nothing(one: Engine) -> None:
    volumes = set(os.listdir(one.state / "volumes"))
    with pytest.raises(OutOfSpace, match="free"):
        one.call("volume.create", name="huge", size_bytes=15 * TIB)
    for size in (0, -1, 4096):
        with pytest.raises(InvalidArgument):
            one.call("volume.create", name="small", size_bytes=size)
    for name in ("a/b", "", "..", "x" * 129):
        with pytest.raises(InvalidArgument):
            one.call("volume.create", name=name, size_bytes=MIB)
    with pytest.raises(InvalidArgument):
        one.call("volume.create", name="odd", size_bytes=MIB, logical_block_size=1024)
    assert set(os.listdir(one.state / "volumes")) == volumes


def test_a_volume_in_use_is_neither_detached_nor_deleted(one: Engine) -> None:
    device = one.volume("used", 64 * MIB)
    run("mkfs.ext4", "-q", device)
    with mounted(device):
        with pytest.raises(FailedPrecondition, match="in use"):
            one.call("volume.detach", name="used")
        with pytest.raises(FailedPrecondition, match="attached"):
            one.call("volume.delete", name="used")
        assert one.call("volume.show", name="used")["attached"] is True


def test_volumes_are_there_after_a_stop_and_after_a_kill() -> None:
    with engine() as made:
        device = made.volume("kept", 16 * MIB)
        fill(device, 16 * MIB)
        digest = run("sha256sum", device).split()[0]
        made.stop()
        assert str(made.state) not in run("losetup", "--all", "--noheadings", "--output", "BACK-FILE")
        made.start()
        assert made.call("volume.show", name="kept")["attached"] is False
        device = made.call("volume.attach", name="kept")["device"]
        assert run("sha256sum", device).split()[0] == digest
        made.kill()
        made.start()
        shown = made.call("volume.show", name="kept")
        assert (shown["attached"], shown["id"]) == (False, made.call("volume.list")["volumes"][0]["id"])
        device = made.call("volume.attach", name="kept")["device"]
        assert run("sha256sum", device).split()[0] == digest


def test_a_second_engine_on_the_same_state_folder_is_refused(one: Engine) -> None:
    import sys

    second = subprocess.run(
        [sys.executable, "-m", "driver.engine", "--state", str(one.state)], capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert second.returncode == 5 and "another engine runs" in second.stderr and "--take-over" in second.stderr


def test_several_processes_serve_one_volume() -> None:
    with engine("--processes", "3") as made:
        device = made.volume("many", 64 * MIB)
        assert len(made.processes("many")) == 3
        run(*FIO, f"--filename={device}", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=64m")


def noted(made: Engine) -> loop.LoopDevice:
    """The device of the one volume that is attached."""
    (note,) = (made.state / "run/loops").iterdir()
    return loop.LoopDevice.of(json.loads(note.read_text()))


def test_a_mark_of_an_earlier_user_of_the_loop_device_does_no_harm(one: Engine) -> None:
    """blockdev --setro stays with the device's number when its user is gone."""
    device = one.volume("marked", 16 * MIB)
    run("blockdev", "--setro", device)
    one.call("volume.detach", name="marked")
    device = one.call("volume.attach", name="marked")["device"]
    assert run("blockdev", "--getro", device).strip() == "0"
    run("mkfs.ext4", "-q", device)


def test_a_dead_device_goes_with_its_last_user() -> None:
    with engine() as made:
        device = made.volume("v", 64 * MIB)
        run("mkfs.ext4", "-q", device)
        dead = noted(made)
        with mounted(device):
            made.kill()
            made.start()
            assert "dead: unmount it; it goes with its last user" in made.log.read_text()
            made.call("volume.attach", name="v")
            new = noted(made)
            assert dead.exists() and new.exists()
        wait_until(lambda: not dead.exists())
        assert new.exists()
        made.call("volume.detach", name="v")
        assert not new.exists()
