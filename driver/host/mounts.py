"""Mounting, unmounting, and how what is mounted fares. Needs CAP_SYS_ADMIN. Any thread; one at a time for one target.

Mounts go through the system calls and not through mount(8): a system call names its error by number, where mount(8) has one
exit code for all, and it starts no helper programs and reads no fstab. What mount(8) would add, the words for flags, is the
table below; every other option is the file system's own.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from driver.core.errors import (
    AlreadyExists,
    DeviceError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotPermitted,
    StillframeError,
    Unsupported,
)  # fmt: skip
from driver.host import kernel
from driver.host.mountinfo import is_mounted, mounts_at, mounts_of, place

DEAD: Final = frozenset({errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ESHUTDOWN, errno.ENXIO})
"""What a file system answers that is shut down, whose server died or whose device is gone."""

_BUSY_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.05
_FLAGS: Final = {
    "ro": kernel.MS_RDONLY, "nosuid": kernel.MS_NOSUID, "nodev": kernel.MS_NODEV, "noexec": kernel.MS_NOEXEC,
    "sync": kernel.MS_SYNCHRONOUS, "mand": kernel.MS_MANDLOCK, "dirsync": kernel.MS_DIRSYNC,
    "nosymfollow": kernel.MS_NOSYMFOLLOW, "noatime": kernel.MS_NOATIME, "nodiratime": kernel.MS_NODIRATIME,
    "silent": kernel.MS_SILENT, "relatime": kernel.MS_RELATIME, "strictatime": kernel.MS_STRICTATIME,
    "lazytime": kernel.MS_LAZYTIME,
}  # fmt: skip
_CLEARED: Final = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "nomand": "mand",
    "symfollow": "nosymfollow", "atime": "noatime", "diratime": "nodiratime", "loud": "silent",
    "norelatime": "relatime", "nostrictatime": "strictatime", "nolazytime": "lazytime",
}  # fmt: skip
_IGNORED: Final = frozenset({"", "defaults", "_netdev", "nofail", "auto", "noauto"})
_REFUSED: Final = frozenset(
    {"bind", "rbind", "move", "remount", "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable",
     "runbindable", "loop", "user", "users", "owner", "group"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a file system, in bytes and in inodes. `available_bytes` is what a process without privileges may still write."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    free_inodes: int


def split_options(options: Sequence[str]) -> tuple[int, str]:
    """The flags of mount(2), and the data for the file system. The last of contradicting words counts.

    Raises InvalidArgument for words that ask for something other than a mount of a device.
    """
    flags, data = 0, []
    for option in (word.strip() for entry in options for word in _words(entry)):
        if option in _REFUSED:
            raise InvalidArgument(f"the mount option {option} is not allowed", "take it out of the mount options")
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _CLEARED:
            flags &= ~_FLAGS[_CLEARED[option]]
        elif option not in _IGNORED and not option.lower().startswith("x-"):
            data.append(option)
    return flags, ",".join(data)


def _words(entry: str) -> list[str]:
    """An entry's words between commas; commas in double quotes, which an SELinux context comes in, part nothing."""
    words = [""]
    for number, part in enumerate(entry.split('"')):
        first, *more = [f'"{part}"'] if number % 2 else part.split(",")
        words[-1] += first
        words += more
    return words


def mount(device: str, target: str, fstype: str, options: Sequence[str] = ()) -> None:
    """Mount a device's file system at `target`, which is made if it is not there (mode 0750).

    xfs with nouuid: a restored copy has its origin's uuid, and both may be on one node. Nothing happens if the device is
    mounted there and may be written to as was asked. Raises AlreadyExists if something else is mounted there,
    InvalidArgument if the file system refuses the options, Unsupported if the kernel has no such file system, DeviceError
    if it is damaged, FailedPrecondition if the device is in use or read-only, NotFound, NotPermitted.
    """
    flags, data = split_options(options)
    if fstype == "xfs" and "nouuid" not in data.split(","):
        data = f"{data},nouuid".lstrip(",")
    if _is_there(device, target, fstype, read_only=bool(flags & kernel.MS_RDONLY)):
        return
    _make_target(target, folder=True)
    try:
        kernel.mount(device, place(target), fstype, flags, data)
    except OSError as error:
        how = "with the options given" if data else "without options"  # which may hold secrets, and errors are logged
        raise _translated(error, f"the {fstype} on {device} cannot be mounted at {target} {how}") from error


def _is_there(device: str, target: str, fstype: str, *, read_only: bool) -> bool:
    there = mounts_at(target)
    if not there:
        return False
    try:
        same = there[-1] in mounts_of(device)
    except OSError as error:
        raise _translated(error, f"{device} cannot be looked at") from error
    if not same or there[-1].fstype != fstype or there[-1].root != "/":
        raise AlreadyExists(f"{there[-1].source} is mounted at {target}, not {device}", f"unmount it first: umount {target}")
    if there[-1].read_only != read_only:
        how = "read-only" if there[-1].read_only else "to be written to"
        raise AlreadyExists(f"{device} is mounted at {target} already, {how}", f"unmount it first: umount {target}")
    return True


def bind(source: str, target: str, *, read_only: bool) -> None:
    """Show the folder or file at `source`, a block device's node for example, at `target` too, which is made if need be.

    A read-only one is never writable, not for a moment: it is made before it is attached, which mount(8)'s bind and
    remount,ro cannot do. It protects a folder or a regular file; a device's node can be opened for writing through any
    mount (the kernel asks a device, not its node, whether it is read-only: BLKROSET), so that a raw volume is protected by
    the container's device permissions or by BLKROSET. Nothing happens if the same is there in the same way. Raises
    AlreadyExists if something else is mounted there, NotFound, DeviceError, NotPermitted, Unsupported before Linux 5.12.
    """
    try:
        wanted = os.stat(source)
        there = mounts_at(target)
        if there:
            found = os.stat(target)
            expected = read_only or bool(os.statvfs(source).f_flag & os.ST_RDONLY and there[-1].read_only)
            if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) or there[-1].read_only != expected:
                raise AlreadyExists(f"{target} shows {source} in another way, or something else", f"umount {target}")
            return
        _make_target(target, folder=stat.S_ISDIR(wanted.st_mode))
        kernel.bind_mount(source, place(target), read_only=read_only)
    except OSError as error:
        raise _translated(error, f"{source} cannot be shown at {target}") from error


def unmount(target: str, seconds: float = _BUSY_SECONDS) -> None:
    """Take away all that is mounted at `target`; nothing happens if nothing is. The folder or file below stays.

    Tried again for `seconds` while it is busy, then FailedPrecondition; but a dead file system (DEAD) that is busy is
    detached: it goes when its last user does. Raises NotPermitted, DeviceError.
    """
    path, deadline = place(target), time.monotonic() + seconds
    while is_mounted(path):
        try:
            kernel.umount(path, kernel.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT) and not is_mounted(path):
                return
            if error.errno != errno.EBUSY:
                raise _translated(error, f"{target} cannot be unmounted") from error
            if (failure := _failure(path)) is not None and failure.errno in DEAD:
                _detach(path)
            elif time.monotonic() > deadline:
                raise FailedPrecondition(f"{target} is in use", f"see by whom: fuser -vm {target}") from None
            else:
                time.sleep(_AGAIN_SECONDS)


def _detach(path: str) -> None:
    try:
        kernel.umount(path, kernel.UMOUNT_NOFOLLOW | kernel.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is gone by now
            raise _translated(error, f"{path} cannot be detached") from error


def is_healthy(target: str) -> bool:
    """Whether something is mounted at `target` that answers and may be written to as it was mounted.

    False for a file system that shut itself down or went read-only after an error, whose device or server is gone. It is
    asked by statfs, by opening its root (xfs refuses that once shut down) and, for ext4, by an fsync of its root (which
    ext4 refuses then, and which costs a healthy one a flush of its device at most). Blocks as long as the device does.
    """
    there = mounts_at(target)
    if not there:
        return False
    went_read_only = "ro" in there[-1].super_options and not there[-1].read_only
    return not went_read_only and "shutdown" not in there[-1].super_options and _failure(target) is None


def _failure(target: str) -> OSError | None:
    """What the topmost file system at `target` answers when it is used; None if all is well."""
    there = mounts_at(target)
    try:
        os.statvfs(target)
        if stat.S_ISBLK(os.stat(target).st_mode):
            return None
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if there and there[-1].fstype == "ext4":
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return None


def statistics(path: str) -> Usage:
    """The usage of the file system at `path`. Raises NotFound, DeviceError."""
    try:
        status = os.statvfs(path)
    except OSError as error:
        raise _translated(error, f"{path} cannot be looked at") from error
    size = status.f_frsize
    return Usage(
        status.f_blocks * size, (status.f_blocks - status.f_bfree) * size, status.f_bavail * size,
        status.f_files, status.f_files - status.f_ffree, status.f_ffree,
    )  # fmt: skip


def _make_target(target: str, *, folder: bool) -> None:
    """The folder or empty file to mount on. Raises OSError, InvalidArgument if there is something of another kind."""
    os.makedirs(os.path.dirname(place(target)), 0o750, exist_ok=True)
    try:
        if folder:
            os.mkdir(place(target), 0o750)
        else:
            os.close(os.open(place(target), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640))
    except FileExistsError:
        mode = os.lstat(place(target)).st_mode
        if stat.S_ISLNK(mode) or stat.S_ISDIR(mode) != folder:
            raise InvalidArgument(f"{target} is not a {'folder' if folder else 'file'}", "remove it") from None


def _translated(error: OSError, what: str) -> StillframeError:
    message = f"{what}: {error.strerror}"
    if error.errno == errno.EPERM:
        return NotPermitted(message, "run it as root with CAP_SYS_ADMIN")
    if error.errno in (errno.EACCES, errno.EROFS):
        return FailedPrecondition(message, "the device may be read-only, or its node on a mount with nodev")
    if error.errno in (errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP):
        return Unsupported(message, "the kernel lacks it; load the file system's module")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(message)
    if error.errno == errno.EINVAL:
        return InvalidArgument(message, "the kernel refuses the options or the file system; it says why in: dmesg")
    if error.errno == errno.EBUSY:
        return FailedPrecondition(message, "see who uses it: fuser -vm")
    return DeviceError(message, "the kernel says more in: dmesg")
