"""Mounts on real loop devices: idempotence, read-only, strange names, busy and dead file systems."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import threading
from fcntl import ioctl
from pathlib import Path

import pytest

from driver.core.errors import AlreadyExists, DeviceError, FailedPrecondition, InvalidArgument, NotFound, Unsupported
from driver.core.sizes import MIB
from driver.host import kernel, mountinfo
from driver.host.filesystems import make
from driver.host.mountinfo import is_mounted, mounts_at, mounts_of
from driver.host.mounts import bind, is_healthy, mount, split_options, statistics, unmount
from tests.engines import run
from tests.linux.conftest import Disks

BOTH = pytest.mark.parametrize("fstype", ["ext4", "xfs"])
SIZE_BYTES = 320 * MIB
SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h), with 2: without writing the log."""


def made(disks: Disks, fstype: str, sector: int = 512) -> str:
    device = disks.new(SIZE_BYTES, sector)
    make(device, fstype)
    return device


def shut_down(target: str) -> None:
    fd = os.open(target, os.O_RDONLY)
    try:
        ioctl(fd, SHUTDOWN, struct.pack("I", 2))
    finally:
        os.close(fd)


def dead_fuse(target: str) -> int:
    """Mount a FUSE whose server is dead; a descriptor that keeps it busy."""
    os.mkdir(target)
    server = os.open("/dev/fuse", os.O_RDWR)
    kernel.mount("dead", target, "fuse", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0")
    user = os.open(target, os.O_PATH)
    os.close(server)
    return user


@BOTH
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_mount_may_be_repeated_and_so_may_its_end(disks: Disks, fstype: str, sector: int) -> None:
    device, target = made(disks, fstype, sector), disks.target("folder/target")
    assert not is_mounted(target)
    unmount(target)
    for _ in range(3):
        mount(device, target, fstype, ["noatime,discard", "nodev"])
        assert len(mounts_at(target)) == 1
    (there,) = mounts_of(device)
    assert (there.target, there.fstype, there.source, there.root) == (target, fstype, device, "/")
    assert {"rw", "noatime", "nodev"} <= set(there.options) and "discard" in there.super_options
    assert ("nouuid" in there.super_options) == (fstype == "xfs")
    assert is_healthy(target)
    for _ in range(2):
        unmount(target)
        assert not is_mounted(target) and os.path.isdir(target)
    assert mounts_of(device) == []


@pytest.mark.parametrize(
    "name", ["with space", "tab\tnewline\n", "back\\slash\\040", "ünï", b"\xff\xfe".decode(errors="surrogateescape")]
)
def test_strange_names_are_read_right(disks: Disks, name: str) -> None:
    device, target = made(disks, "ext4"), disks.target(name)
    mount(device, target, "ext4")
    mount(device, f"{target}/", "ext4")
    assert [there.target for there in mounts_of(device)] == [target]
    Path(target, "file").write_text("")
    bind(f"{target}/file", disks.target(f"{name} file"), read_only=True)
    (shown,) = mounts_at(disks.target(f"{name} file"))
    assert shown.root == "/file" and shown.read_only
    unmount(disks.target(f"{name} file"))
    os.symlink(disks.folder, disks.target("link"))
    assert is_mounted(disks.target(f"link/{name}"))
    unmount(disks.target(f"link/{name}"))
    assert not is_mounted(target)


def test_mountinfo_is_read_as_the_kernel_writes_it() -> None:
    line = rb"36 35 98:0 /a\040b /mnt\134\011 rw,noatime master:1 propagate_from:2 - ext3 /dev/my\012root rw,errors=continue"
    (there,) = mountinfo.parse(line + b"\n")
    assert there == mountinfo.Mount(
        36, 35, "98:0", "/a b", "/mnt\\\t", "ext3", "/dev/my\nroot", ("rw", "noatime"), ("rw", "errors=continue")
    )
    assert mountinfo.parse(b"1 1 0:1 / / ro shared:1 - tmpfs  rw\n")[0].source == ""


def test_an_origin_and_its_copy_are_mounted_at_once(disks: Disks) -> None:
    device = made(disks, "xfs")
    copy = disks.target("copy")
    run("blockdev", "--flushbufs", device)
    run("cp", "--sparse=always", str(disks.file(device)), copy)
    mount(device, disks.target("origin"), "xfs")
    mount(disks.attach(Path(copy)), disks.target("restored"), "xfs")


@BOTH
def test_what_differs_is_refused(disks: Disks, fstype: str) -> None:
    device, other, target = made(disks, fstype), made(disks, fstype), disks.target()
    mount(device, target, fstype, ["ro"])
    assert mounts_at(target)[0].read_only and is_healthy(target)
    with pytest.raises(AlreadyExists, match="read-only"):
        mount(device, target, fstype)
    with pytest.raises(AlreadyExists, match="is mounted at"):
        mount(other, target, fstype, ["ro"])
    assert len(mounts_at(target)) == 1
    unmount(target)
    with pytest.raises(InvalidArgument, match="cannot be mounted"):
        mount(device, target, fstype, ["no-such-option"])
    with pytest.raises(InvalidArgument, match="not allowed"):
        mount(device, target, fstype, ["noatime,remount"])
    with pytest.raises(Unsupported):
        mount(device, target, "no-such-type")
    with pytest.raises(NotFound):
        mount("/dev/no-such-device", target, fstype)
    run("blockdev", "--setro", device)
    with pytest.raises(FailedPrecondition, match="cannot be mounted"):
        mount(device, target, fstype)
    assert not is_mounted(target)
    os.symlink(target, disks.target("link"))
    with pytest.raises(InvalidArgument, match="not a folder"):
        mount(other, disks.target("link"), fstype)


def test_options_are_split_as_mount_does() -> None:
    assert split_options([]) == (0, "")
    assert split_options(["defaults", "noatime,ro,data=ordered", "rw", "x-systemd.automount", "_netdev"]) == (
        kernel.MS_NOATIME, "data=ordered",
    )  # fmt: skip
    assert split_options(['context="u:r:t:s0:c1,c2",nosuid']) == (kernel.MS_NOSUID, 'context="u:r:t:s0:c1,c2"')


@BOTH
def test_a_read_only_bind_is_never_writable(disks: Disks, fstype: str) -> None:
    device, staged, published = made(disks, fstype), disks.target("staged"), disks.target("published/mount")
    mount(device, staged, fstype, ["nosuid", "noatime"])
    Path(staged, "file").write_text("one")
    seen: set[bool] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(there.read_only for there in mounts_at(published))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(100):
            bind(staged, published, read_only=True)
            bind(staged, published, read_only=True)
            (there,) = mounts_at(published)
            assert {"ro", "nosuid", "noatime"} <= set(there.options)
            with pytest.raises(OSError, match="Read-only") as raised:
                Path(published, "file").write_text("two")
            assert raised.value.errno == errno.EROFS
            unmount(published)
    finally:
        done.set()
        watcher.join()
    assert seen == {True}
    Path(staged, "file").write_text("two")
    bind(staged, published, read_only=False)
    bind(staged, published, read_only=False)
    Path(published, "file").write_text("three")
    assert Path(staged, "file").read_text() == "three"
    with pytest.raises(AlreadyExists):
        bind(staged, published, read_only=True)
    with pytest.raises(AlreadyExists):
        bind(str(disks.folder), published, read_only=False)
    with pytest.raises(NotFound):
        bind(disks.target("nothing"), disks.target("new"), read_only=False)


def test_a_device_is_shown_at_a_file(disks: Disks) -> None:
    device, published = disks.new(16 * MIB, 4096), disks.target("published/device")
    for _ in range(2):
        bind(device, published, read_only=False)
    assert os.stat(published).st_rdev == os.stat(device).st_rdev and is_healthy(published)
    assert run("blockdev", "--getss", published).strip() == "4096"
    with pytest.raises(AlreadyExists):
        bind(disks.new(16 * MIB), published, read_only=False)
    for _ in range(2):
        unmount(published)
    assert Path(published).read_bytes() == b""
    bind(device, published, read_only=True)
    assert mounts_at(published)[0].read_only


@BOTH
def test_a_busy_mount_is_kept_and_said_to_be_busy(disks: Disks, fstype: str) -> None:
    device, target = made(disks, fstype), disks.target()
    mount(device, target, fstype)
    with Path(target, "file").open("w") as file:
        with pytest.raises(FailedPrecondition, match="in use") as raised:
            unmount(target, seconds=0.2)
        assert raised.value.hint.endswith(f"fuser -vm {target}")
        file.write("kept")
    assert is_mounted(target)
    late = subprocess.Popen(["sleep", "0.5"], cwd=target)
    unmount(target, seconds=60)
    late.wait()
    mount(device, target, fstype)
    assert Path(target, "file").read_text() == "kept"


def test_all_that_is_stacked_goes(disks: Disks) -> None:
    device, target = made(disks, "ext4"), disks.target()
    mount(device, target, "ext4")
    bind(str(disks.folder), disks.target("other"), read_only=True)
    kernel.bind_mount(disks.target("other"), target, read_only=False)
    assert len(mounts_at(target)) == 2
    unmount(target)
    assert not is_mounted(target)


@BOTH
def test_a_dead_file_system_is_seen_and_unmounted_even_if_busy(disks: Disks, fstype: str) -> None:
    device, target = made(disks, fstype), disks.target()
    mount(device, target, fstype)
    assert is_healthy(target)
    with Path(target, "file").open("w"):
        shut_down(target)
        assert not is_healthy(target)
        unmount(target, seconds=600)
        assert not is_mounted(target)


def test_a_dead_server_is_seen_and_unmounted_even_if_busy(disks: Disks) -> None:
    target = disks.target()
    user = dead_fuse(target)
    try:
        assert is_mounted(target) and not is_healthy(target)
        with pytest.raises(DeviceError):
            statistics(target)
        unmount(target, seconds=600)
    finally:
        os.close(user)
    assert not is_mounted(target)
    assert not is_healthy(target)


def test_a_file_system_that_went_read_only_is_not_healthy(disks: Disks) -> None:
    device, target = made(disks, "ext4"), disks.target()
    mount(device, target, "ext4", ["errors=remount-ro"])
    (Path("/sys/fs/ext4") / os.path.basename(device) / "trigger_fs_error").write_text("a test")
    assert "ro" not in mounts_at(target)[0].options
    assert not is_healthy(target)


@BOTH
def test_a_device_whose_end_is_gone_gives_no_mount(disks: Disks, fstype: str) -> None:
    device, target = made(disks, fstype), disks.target()
    os.truncate(disks.file(device), MIB)
    run("blockdev", "--flushbufs", device)
    with pytest.raises((DeviceError, InvalidArgument), match="cannot be mounted"):
        mount(device, target, fstype)
    assert not is_mounted(target)


@BOTH
def test_statistics_are_those_of_df(disks: Disks, fstype: str) -> None:
    device, target = made(disks, fstype), disks.target()
    mount(device, target, fstype)
    before = statistics(target)
    Path(target, "file").write_bytes(os.urandom(10 * MIB))
    run("sync", "-f", target)
    usage = statistics(target)
    columns = "size,used,avail,itotal,iused,iavail"
    assert [int(field) for field in run("df", "-B1", f"--output={columns}", target).split("\n")[1].split()] == [
        usage.total_bytes, usage.used_bytes, usage.available_bytes,
        usage.total_inodes, usage.used_inodes, usage.free_inodes,
    ]  # fmt: skip
    assert usage.used_bytes - before.used_bytes >= 10 * MIB and usage.used_inodes == before.used_inodes + 1
    with pytest.raises(NotFound):
        statistics(disks.target("nothing"))
