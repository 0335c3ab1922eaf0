"""File systems on real loop devices: nothing with data is formatted, what a killed mkfs left is made anew, growth."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest

from driver.core.errors import DeviceError, FailedPrecondition, InvalidArgument, NotPermitted
from driver.core.sizes import KIB, MIB
from driver.host import filesystems, mounts
from driver.host.filesystems import check, grow, grow_offline, make, needs_growth, what_is_on
from driver.host.superblocks import XFS_BYTES_MIN
from tests.engines import run
from tests.linux.conftest import Disks

BOTH = pytest.mark.parametrize("fstype", ["ext4", "xfs"])
SIZE_BYTES = 320 * MIB


def digest(disks: Disks, device: str) -> str:
    """Of the file below, once all is written."""
    run("blockdev", "--flushbufs", device)
    with disks.file(device).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(device: str, data: bytes, offset: int = 0) -> None:
    fd = os.open(device, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def assert_whole(device: str, fstype: str) -> None:
    """By the file system's own full check, which changes nothing."""
    run(*(("e2fsck", "-fn", device) if fstype == "ext4" else ("xfs_repair", "-n", device)))


def killing(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str, write_number: int) -> None:
    """Have the program die by SIGKILL as it is about to do its nth write, sync or zeroing."""
    real, wrapper = shutil.which(program), folder / "bin" / program
    wrapper.parent.mkdir(exist_ok=True)
    calls = "pwrite64,fallocate,fsync"
    inject = f"-e trace={calls} -e inject={calls}:signal=KILL:when={write_number}"
    wrapper.write_text(f'#!/bin/sh\nexec strace -f -o /dev/null {inject} {real} "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


@BOTH
@pytest.mark.parametrize("sector", [512, 4096])
def test_an_empty_device_gets_a_file_system_once(disks: Disks, fstype: str, sector: int) -> None:
    device = disks.new(SIZE_BYTES, sector)
    assert what_is_on(device) is None
    make(device, fstype)
    assert what_is_on(device) == fstype
    assert_whole(device, fstype)
    before = digest(disks, device)
    make(device, fstype)
    assert digest(disks, device) == before
    other = "xfs" if fstype == "ext4" else "ext4"
    for may_reformat in (False, True):
        with pytest.raises(FailedPrecondition, match=f"holds {fstype}, not {other}"):
            make(device, other, may_reformat=may_reformat)
    assert digest(disks, device) == before


def test_options_reach_mkfs_and_leave_no_discard_in(disks: Disks) -> None:
    device = disks.new(64 * MIB)
    write(device, b"x", 32 * MIB)
    make(device, "ext4", ["-E", "lazy_itable_init=0", "-b", "4096", "-Eroot_owner=7:8"])
    shown = run("dumpe2fs", "-h", device)
    assert "Block size:               4096" in shown and "Reserved block count:     0" in shown
    with disks.file(device).open("rb") as file:
        assert os.pread(file.fileno(), 1, 32 * MIB) == b"x"
    with pytest.raises(DeviceError, match=r"mkfs.ext4 .* ended with 1"):
        make(disks.new(64 * MIB), "ext4", ["-b", "77"])


def test_what_cannot_be_is_refused(disks: Disks) -> None:
    small = disks.new(XFS_BYTES_MIN - MIB)
    with pytest.raises(InvalidArgument, match=r"300\.0 MiB"):
        make(small, "xfs")
    with pytest.raises(InvalidArgument, match="btrfs"):
        make(small, "btrfs")
    assert what_is_on(small) is None
    make(disks.new(XFS_BYTES_MIN), "xfs")


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_never_formatted_over(disks: Disks, fstype: str, seed: int) -> None:
    chance = random.Random(seed)
    device = disks.new(SIZE_BYTES)
    write(device, chance.randbytes(2 * MIB if seed else 4096))
    before = digest(disks, device)
    for may_reformat in (False, True):
        with pytest.raises(FailedPrecondition, match="no known file system"):
            make(device, fstype, may_reformat=may_reformat)
    assert digest(disks, device) == before


@BOTH
@pytest.mark.parametrize("at", [0, 4097, MIB - 1, -MIB, -1])
def test_one_byte_that_blkid_does_not_see_is_enough(disks: Disks, fstype: str, at: int) -> None:
    device = disks.new(SIZE_BYTES)
    write(device, b"x", at % SIZE_BYTES)
    before = digest(disks, device)
    with pytest.raises(FailedPrecondition, match="no known file system"):
        what_is_on(device)
    with pytest.raises(FailedPrecondition, match="no known file system"):
        make(device, fstype)
    assert digest(disks, device) == before


def test_other_signatures_are_named_and_kept(disks: Disks) -> None:
    device = disks.new(SIZE_BYTES)
    table = bytearray(512)
    table[446:462] = bytes([0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0])
    table[510:] = b"\x55\xaa"
    write(device, bytes(table))
    assert what_is_on(device) == "partition table"
    before = digest(disks, device)
    for may_reformat in (False, True):
        with pytest.raises(FailedPrecondition, match="partition table"):
            make(device, "xfs", may_reformat=may_reformat)
    swap = disks.new(16 * MIB)
    run("mkswap", swap)
    assert what_is_on(swap) == "swap"
    with pytest.raises(FailedPrecondition, match="swap"):
        make(swap, "ext4", may_reformat=True)
    assert digest(disks, device) == before


def test_two_signatures_are_one_too_many(disks: Disks) -> None:
    device, other = disks.new(SIZE_BYTES), disks.new(SIZE_BYTES)
    make(device, "xfs")
    make(other, "ext4")
    with disks.file(other).open("rb") as file:
        write(device, os.pread(file.fileno(), 1024, 1024), 1024)
    before = digest(disks, device)
    for fstype in ("xfs", "ext4"):
        with pytest.raises(FailedPrecondition, match="more than one"):
            make(device, fstype, may_reformat=True)
    assert digest(disks, device) == before


@BOTH
def test_a_device_that_cannot_be_read_is_not_empty(disks: Disks, fstype: str) -> None:
    device = disks.new(SIZE_BYTES)
    os.truncate(disks.file(device), SIZE_BYTES - MIB // 2)
    for may_reformat in (False, True):
        with pytest.raises(DeviceError, match="cannot be read"):
            make(device, fstype, may_reformat=may_reformat)
    with pytest.raises(DeviceError, match="no-such-device"):
        what_is_on(disks.target("no-such-device"))
    Path(disks.target("without-size")).touch()
    with pytest.raises(DeviceError, match="no size"):
        what_is_on(disks.target("without-size"))


@BOTH
@pytest.mark.parametrize("write_number", [1, 2, 3, 4, 5, 12, 13, 30, 64, 65, 66, 200, 300, 330, 335, 336, 337])
def test_a_killed_mkfs_is_made_anew(disks: Disks, monkeypatch: pytest.MonkeyPatch, fstype: str, write_number: int) -> None:
    device = disks.new(400 * MIB)
    with monkeypatch.context() as patched:
        killing(patched, disks.folder, f"mkfs.{fstype}", write_number)
        try:
            make(device, fstype)
            killed = False
        except DeviceError:
            killed = True
    assert killed or write_number > (60 if fstype == "xfs" else 330)
    try:
        make(device, fstype)  # either it is still empty, or it is refused, or it had come to its end
    except FailedPrecondition:
        make(device, fstype, may_reformat=True)
    assert_whole(device, fstype)


@pytest.mark.parametrize("seed", range(6))
def test_an_xfs_that_a_power_loss_tore_is_made_anew(disks: Disks, seed: int) -> None:
    chance = random.Random(seed)
    device = disks.new(400 * MIB)
    make(device, "xfs")
    run("blockdev", "--flushbufs", device)
    with disks.file(device).open("r+b") as file:
        for offset in range(0, 64 * KIB, 512):
            if chance.random() < 0.5 and (offset or seed % 2):
                os.pwrite(file.fileno(), bytes(512), offset)
    run("blockdev", "--flushbufs", device)
    make(device, "xfs", may_reformat=True)
    assert_whole(device, "xfs")


@BOTH
def test_what_was_written_to_is_kept_even_if_the_caller_is_wrong(disks: Disks, fstype: str) -> None:
    device, target = disks.new(SIZE_BYTES), disks.target()
    make(device, fstype)
    for _ in range(2):
        mounts.mount(device, target, fstype)
        make(device, fstype, may_reformat=True)
        Path(target, "file").write_text("kept")
        mounts.unmount(target)
        make(device, fstype, may_reformat=True)
    mounts.mount(device, target, fstype)
    assert Path(target, "file").read_text() == "kept"


@BOTH
def test_a_device_in_use_is_left_alone(disks: Disks, fstype: str) -> None:
    device = disks.new(SIZE_BYTES)
    claim = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(FailedPrecondition, match="in use"):
            make(device, fstype)
        with pytest.raises(FailedPrecondition, match="in use"):
            check(device, fstype)
    finally:
        os.close(claim)
    assert what_is_on(device) is None


def test_a_check_mends_what_needs_no_decision(disks: Disks) -> None:
    device, target = disks.new(SIZE_BYTES), disks.target()
    make(device, "ext4")
    check(device, "ext4")
    mounts.mount(device, target, "ext4")
    Path(target, "file").write_text("kept")
    run("sync", "-f", target)
    image = disks.target("crashed")
    run("cp", "--sparse=always", str(disks.file(device)), image)
    mounts.unmount(target)
    crashed = disks.attach(Path(image))
    assert "needs_recovery" in run("dumpe2fs", "-h", crashed)
    check(crashed, "ext4")
    assert "needs_recovery" not in run("dumpe2fs", "-h", crashed)
    assert_whole(crashed, "ext4")


def test_a_check_that_needs_a_decision_says_so(disks: Disks) -> None:
    device = disks.new(SIZE_BYTES)
    make(device, "ext4")
    run("debugfs", "-w", "-R", "clri <2>", device)
    run("debugfs", "-w", "-R", "ssv state 2", device)
    with pytest.raises(DeviceError, match=r"e2fsck -p .* ended with 4") as raised:
        check(device, "ext4")
    assert "restore the volume from a snapshot" in raised.value.hint


@BOTH
@pytest.mark.parametrize("extra", [0, 4 * KIB, 68 * KIB, 256 * KIB, 300 * KIB, MIB, 3 * MIB + 12 * KIB, 9 * MIB, 127 * MIB])
@pytest.mark.parametrize("start", [304 * MIB, 512 * MIB])
def test_nothing_needs_growth_that_could_not_grow(disks: Disks, fstype: str, extra: int, start: int) -> None:
    device, target = disks.new(start + extra), disks.target()
    make(device, fstype)
    assert not needs_growth(device, fstype)
    disks.resize(device, start + 2 * extra + 130 * MIB)
    assert needs_growth(device, fstype)
    if fstype == "ext4":
        grow_offline(device, fstype)
    else:
        grow_offline(device, fstype)
        assert needs_growth(device, fstype)
        mounts.mount(device, target, fstype)
        grow(device, target, fstype)
        assert not needs_growth(device, fstype)
        assert mounts.statistics(target).total_bytes > start + 2 * extra
        mounts.unmount(target)
    assert not needs_growth(device, fstype)
    assert_whole(device, fstype)


def test_a_mounted_xfs_is_grown_again_and_again(disks: Disks) -> None:
    device, target = disks.new(SIZE_BYTES, 4096), disks.target("with space and \\ and \n")
    make(device, "xfs")
    mounts.mount(device, target, "xfs")
    for size_bytes in (400 * MIB, 500 * MIB, 600 * MIB):
        disks.resize(device, size_bytes)
        assert needs_growth(device, "xfs")
        grow(device, target, "xfs")
        assert not needs_growth(device, "xfs")
        grow(device, target, "xfs")


def test_an_ext4_is_grown_while_mounted_if_the_kernel_allows_it(disks: Disks) -> None:
    device, target = disks.new(SIZE_BYTES), disks.target()
    make(device, "ext4")
    mounts.mount(device, target, "ext4")
    grow(device, target, "ext4")
    disks.resize(device, 2 * SIZE_BYTES)
    if filesystems._may_resize_online():
        grow(device, target, "ext4")
        assert not needs_growth(device, "ext4")
    else:
        with pytest.raises(NotPermitted, match="CAP_SYS_RESOURCE"):
            grow(device, target, "ext4")
        with pytest.raises(FailedPrecondition, match="in use"):
            grow_offline(device, "ext4")


@pytest.mark.parametrize("write_number", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233])
def test_a_killed_growth_loses_nothing(disks: Disks, monkeypatch: pytest.MonkeyPatch, write_number: int) -> None:
    device, target = disks.new(SIZE_BYTES), disks.target()
    make(device, "ext4")
    mounts.mount(device, target, "ext4")
    content = random.Random(write_number).randbytes(20 * MIB)
    Path(target, "file").write_bytes(content)
    mounts.unmount(target)
    disks.resize(device, 3 * SIZE_BYTES)
    with monkeypatch.context() as patched:
        killing(patched, disks.folder, "resize2fs", write_number)
        try:
            grow_offline(device, "ext4")
            cut = False
        except DeviceError:
            cut = True
    check(device, "ext4", growth_was_cut=cut)
    grow_offline(device, "ext4")
    assert not needs_growth(device, "ext4")
    assert_whole(device, "ext4")
    mounts.mount(device, target, "ext4")
    assert Path(target, "file").read_bytes() == content
