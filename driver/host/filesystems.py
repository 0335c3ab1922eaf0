"""File systems on block devices: what is there, made, checked and grown. Nothing that holds data is ever formatted over.

Needs root. Any thread, but one at a time on one device: the caller's lock on the volume guards it. The programs are those
of e2fsprogs, xfsprogs and util-linux; none of them has a terminal to ask on, and what they print is not read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from fcntl import ioctl
from typing import Final

from driver.core.errors import DeviceError, FailedPrecondition, InvalidArgument, NotPermitted
from driver.core.sizes import MIB, format_size
from driver.host import kernel, loop, mountinfo, superblocks
from driver.host.run import finish, run
from driver.host.superblocks import FILE_SYSTEMS, HEAD_BYTES, PLACE_BYTES, XFS_BYTES_MIN, Sizes

PARTITION_TABLE: Final = "partition table"

_LOOKED_AT_BYTES: Final = MIB
_MKFS_SECONDS: Final = 1800.0
_CHECK_SECONDS: Final = 6 * 3600.0
"""A full check of a large file system reads all its tables."""
_GROW_SECONDS: Final = 3600.0
_BLKID_NOTHING: Final = 2
_BLKID_AMBIVALENT: Final = 8
_FSCK_HARMLESS: Final = 1 | 2
"""Errors were corrected; the system should be rebooted, which concerns the root file system only (e2fsck(8))."""
_XFS_IOC_FSGEOMETRY_V1: Final = 0x80705864
_GEOMETRY: Final = struct.Struct("=8IQ72x")
_CAP_SYS_RESOURCE: Final = 24


def what_is_on(device: str) -> str | None:
    """The type of the file system or other signature on the device; None if it is certain that there is nothing.

    "partition table" for one of any kind. Blkid's silence is not enough: the first and the last MiB must be zero as well.
    Raises FailedPrecondition if there is more than one signature or data without any, DeviceError if it cannot be read.
    """
    found = _signature(device)
    if found is None and not _is_empty(device):
        raise _unknown_data(device)
    return found


def make(device: str, fstype: str, options: Sequence[str] = (), *, may_reformat: bool = False) -> None:
    """Have an `fstype` on the device, whole and durable. Nothing happens if it has one; `options` are mkfs's own.

    `may_reformat` says that the caller durably noted, before its first call, that this device was empty, and that nothing
    was ever written through a mount of it since. Only then is what a killed mkfs or a power loss left made anew, and only
    if it looks like that: an xfs that mkfs did not finish or the kernel never wrote, or a superblock's place full of zeros.

    No discards: a fresh volume is zero already, and a thick one would have to zero its ranges. ext4 keeps no blocks for
    root (-m 0), its inode tables are zeroed after the mount (lazy_itable_init is mkfs's default), its journal at once.
    Raises InvalidArgument, FailedPrecondition if anything else is there or the device is in use, DeviceError if mkfs fails.
    """
    _check_arguments(device, fstype)
    found = _signature(device)
    unfinished = False
    if found == fstype:
        unfinished = not superblocks.was_finished(fstype, _head(device))
        suspect = unfinished or superblocks.was_never_written(fstype, _head(device))
        if unfinished and not may_reformat:
            raise FailedPrecondition(
                f"the {fstype} on {device} was never finished, and it is not certain that it may be made anew",
                f"if its data is of no use: wipefs --all {device}",
            )
        if not may_reformat or not suspect or _mounts(device):
            return
    elif found is not None:
        raise FailedPrecondition(
            f"{device} holds {found}, not {fstype}; it is not formatted over", f"if it is of no use: wipefs --all {device}"
        )
    elif not _is_empty(device) and not (may_reformat and not any(_head(device)[: PLACE_BYTES[fstype]])):
        raise _unknown_data(device)
    _check_unused(device)
    if fstype == "ext4":
        command = ["mkfs.ext4", "-q", "-m", "0", *_joined_extended(options)]
    else:
        again = ["-f"] if found == fstype else []
        command = ["mkfs.xfs", "-q", "-K", *again, *options]
    run([*command, device], _MKFS_SECONDS)


def check(device: str, fstype: str, *, growth_was_cut: bool = False) -> None:
    """Make the file system fit to be mounted, before it is.

    Raises DeviceError if that needs a decision, FailedPrecondition if the device is in use.
    ext4: e2fsck -p replays the journal, and looks at everything if the file system was marked as damaged.
    xfs: nothing. Its mount replays the log, which is all that a crash needs; xfs_repair refuses a log that was not
    replayed, and mends damage only by decisions (-L loses data) that no program should take (fsck.xfs(8)).

    `growth_was_cut` says that the caller durably noted that it called `grow_offline` and did not see it return. A resize2fs
    that was cut leaves a resize inode and free counts that e2fsck -p does not touch; the file system was found clean before,
    so that what is wrong is what resize2fs was about to write, and e2fsck -y decides right.
    """
    _check_type(fstype)
    _check_unused(device)
    if fstype != "ext4":
        return
    try:
        _e2fsck(device, "-p")
    except DeviceError:
        if not growth_was_cut:
            raise
        _e2fsck(device, "-f", "-y")


def needs_growth(device: str, fstype: str) -> bool:
    """Whether the file system is smaller than its device allows: nothing is run, the superblock is read.

    A rest of the device that the file system would not take (superblocks.py) counts for nothing. A mounted xfs is asked
    itself: the superblock on its disk may be older. Raises DataCorrupt if there is no such file system, DeviceError.
    """
    _check_type(fstype)
    sizes = _sizes(device, fstype)
    return sizes.possible > sizes.blocks


def grow(device: str, mountpoint: str, fstype: str) -> None:
    """Have the mounted file system take its whole device. Nothing happens if it does, or if the device is smaller.

    Raises NotPermitted if ext4 cannot be resized online: the kernel asks for CAP_SYS_RESOURCE (ext4_resize_begin in
    fs/ext4/resize.c), and `grow_offline` does without. Raises DeviceError.
    """
    if not needs_growth(device, fstype):
        return
    if fstype == "xfs":
        run(["xfs_growfs", "-d", mountpoint], _GROW_SECONDS)
        return
    if not _may_resize_online():
        raise NotPermitted(
            f"the ext4 at {mountpoint} cannot be grown while it is mounted: that needs CAP_SYS_RESOURCE",
            "run the node service privileged, or stage the volume again: it is grown before the mount",
        )
    run(["resize2fs", device], _GROW_SECONDS)


def grow_offline(device: str, fstype: str) -> None:
    """Have an ext4 that is not mounted take its whole device; an xfs can only be grown by `grow`, so nothing happens.

    e2fsck -f -p comes first, which resize2fs insists on. No journal protects this, unlike `grow`: note it durably before,
    take the note back after, and pass `growth_was_cut` to the `check` of a device that has the note. Raises
    FailedPrecondition if the device is in use, DeviceError.
    """
    if fstype != "ext4" or not needs_growth(device, fstype):
        return
    _check_unused(device)
    _e2fsck(device, "-f", "-p")
    run(["resize2fs", device], _GROW_SECONDS)


def _signature(device: str) -> str | None:
    """What blkid finds by reading the device itself: -p uses no cache."""
    probed = finish(["blkid", "-p", "-o", "export", device])
    fields = dict(line.partition("=")[::2] for line in probed.output.splitlines())
    signatures = [name for name in (fields.get("TYPE"), PARTITION_TABLE if "PTTYPE" in fields else None) if name]
    if probed.code == _BLKID_AMBIVALENT or len(signatures) > 1:
        raise FailedPrecondition(
            f"{device} holds more than one signature; it is neither mounted nor formatted",
            f"look at them with: wipefs {device}, and remove those that are wrong",
        )
    if probed.code not in (0, _BLKID_NOTHING):
        raise probed.failed()
    return signatures[0] if signatures else None


def _is_empty(device: str) -> bool:
    size_bytes = _size_bytes(device)
    length = min(size_bytes, _LOOKED_AT_BYTES)
    return not any(any(_read(device, offset, length)) for offset in (0, size_bytes - length))


def _unknown_data(device: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{device} holds data that is no known file system; it is not formatted over",
        f"if it is of no use: wipefs --all {device}, then overwrite its first and last MiB with zeros",
    )


def _check_type(fstype: str) -> None:
    if fstype not in FILE_SYSTEMS:
        raise InvalidArgument(f"{fstype} is not supported", f"use one of: {', '.join(FILE_SYSTEMS)}")


def _check_arguments(device: str, fstype: str) -> None:
    _check_type(fstype)
    size_bytes = _size_bytes(device)
    if fstype == "xfs" and size_bytes < XFS_BYTES_MIN:
        raise InvalidArgument(
            f"{device} has {format_size(size_bytes)}, and xfs needs {format_size(XFS_BYTES_MIN)}",
            "use ext4, or a larger volume",
        )


def _joined_extended(options: Sequence[str]) -> list[str]:
    """mkfs.ext4's options with one -E, as only the last of several would count."""
    extended, others, rest = ["nodiscard"], [], iter(options)
    for option in rest:
        if option.startswith("-E"):
            extended.append(option[2:] or next(rest, ""))
        else:
            others.append(option)
    return ["-E", ",".join(extended), *others]


def _e2fsck(device: str, *options: str) -> None:
    ended = finish(["e2fsck", *options, device], _CHECK_SECONDS)
    if ended.code < 0 or ended.code & ~_FSCK_HARMLESS:
        raise DeviceError(
            ended.failed().message,
            f"restore the volume from a snapshot, or mend it by hand with: e2fsck -f {device}",
        )


def _sizes(device: str, fstype: str) -> Sizes:
    size_bytes = _size_bytes(device)
    mounted = _mounts(device) if fstype == "xfs" else []
    if not mounted:
        return superblocks.sizes(fstype, _head(device), size_bytes)
    try:
        fd = os.open(mounted[0].target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            geometry = ioctl(fd, _XFS_IOC_FSGEOMETRY_V1, bytes(_GEOMETRY.size))
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceError(f"the xfs at {mounted[0].target} does not answer: {error.strerror}") from error
    block_bytes, _, group_blocks, *_, blocks = _GEOMETRY.unpack(geometry)
    return superblocks.xfs_sizes(block_bytes, blocks, group_blocks, size_bytes)


def _may_resize_online() -> bool:
    return bool(kernel.capabilities() >> _CAP_SYS_RESOURCE & 1)


def _head(device: str) -> bytes:
    return _read(device, 0, HEAD_BYTES)


def _size_bytes(device: str) -> int:
    try:
        size_bytes = loop.size_bytes(device)
    except OSError as error:
        raise DeviceError(f"{device} cannot be opened: {error.strerror}") from error
    if size_bytes == 0:
        raise DeviceError(f"{device} has no size: what it was attached to is gone")
    return size_bytes


def _read(device: str, offset: int, length: int) -> bytes:
    """Raises DeviceError if the device has not that many bytes, or does not give them."""
    data = b""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(data) < length:  # a read error in the middle makes a short read first
                more = os.pread(fd, length - len(data), offset + len(data))
                if not more:
                    raise DeviceError(f"{device} ends at {offset + len(data)}, within what is to be read")
                data += more
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceError(f"{device} cannot be read at {offset + len(data)}: {error.strerror}") from error
    return data


def _mounts(device: str) -> list[mountinfo.Mount]:
    try:
        return mountinfo.mounts_of(device)
    except OSError as error:
        raise DeviceError(f"{device} cannot be looked at: {error.strerror}") from error


def _check_unused(device: str) -> None:
    try:
        loop.check_unused(device)
    except OSError as error:
        raise DeviceError(f"{device} cannot be opened: {error.strerror}") from error
