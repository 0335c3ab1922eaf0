"""Backing files: made, grown, opened for direct I/O. Any thread of the engine service."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from fcntl import ioctl
from pathlib import Path
from typing import Final

from driver.core.errors import OutOfSpace, Unsupported
from driver.core.sizes import GIB, format_size
from driver.host import files
from driver.host.kernel import fallocate

_FICLONERANGE: Final = 0x4020940D
"""include/uapi/linux/fs.h, struct file_clone_range."""
_CLONE_RANGE: Final = struct.Struct("=qQQQ")
_CLONED_AT_ONCE_BYTES: Final = GIB
_CANNOT_SHARE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ETXTBSY})


def create(path: Path, size_bytes: int, *, thick: bool) -> None:
    """A new file of `size_bytes`; with `thick` its blocks are reserved. Raises OutOfSpace; leaves nothing then."""
    if thick:
        _check_free(path.parent, size_bytes)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _extend(fd, 0, size_bytes, thick=thick)
        os.fsync(fd)
    except OSError as error:
        os.unlink(path)
        raise _translated(error, path, size_bytes) from error
    finally:
        os.close(fd)
    files.sync_folder(path.parent)


def grow(path: Path, size_bytes: int, *, thick: bool) -> None:
    """Extend the file to `size_bytes`; one that is larger stays. Raises OutOfSpace; the size is the old one then."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        old_bytes = os.fstat(fd).st_size
        if old_bytes >= size_bytes:
            return
        if thick:
            _check_free(path.parent, size_bytes - old_bytes)
        try:
            _extend(fd, old_bytes, size_bytes, thick=thick)
            os.fsync(fd)
        except OSError as error:
            os.ftruncate(fd, old_bytes)
            raise _translated(error, path, size_bytes) from error
    finally:
        os.close(fd)


def _extend(fd: int, old_bytes: int, size_bytes: int, *, thick: bool) -> None:
    if thick:
        fallocate(fd, 0, old_bytes, size_bytes - old_bytes)
    else:
        os.ftruncate(fd, size_bytes)


def _check_free(folder: Path, wanted_bytes: int) -> None:
    free_bytes = free(folder)
    if wanted_bytes > free_bytes:
        raise OutOfSpace(
            f"{format_size(wanted_bytes)} are asked of {folder}, which has {format_size(free_bytes)} free",
            "free space, ask for less, or make it thin (--thin; in a StorageClass: provisioning: thin)",
        )


def _translated(error: OSError, path: Path, size_bytes: int) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace(f"{path}: no space for {format_size(size_bytes)}", "free space, or ask for less")
    if error.errno == errno.EFBIG:
        return OutOfSpace(
            f"{path}: the file system does not allow a file of {format_size(size_bytes)}",
            "put the state folder on a file system with larger files, such as xfs",
        )
    return error


def free(folder: Path) -> int:
    """Bytes that a new file in `folder` could take."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def share(target: int, source: int, size_bytes: int, seconds: float) -> bool:
    """Have the file `target` share the first `size_bytes` of `source`'s blocks, copied when either is written (reflink).

    False, with some of it perhaps shared, if the file system cannot, or if it takes longer than `seconds`, which is looked
    at after each GiB. Raises OSError.
    """
    deadline = time.monotonic() + seconds
    for offset in range(0, size_bytes, _CLONED_AT_ONCE_BYTES):
        length = min(size_bytes - offset, _CLONED_AT_ONCE_BYTES)
        try:
            ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, offset, length, offset))
        except OSError as error:
            if error.errno in _CANNOT_SHARE:
                return False
            raise
        if time.monotonic() > deadline and offset + length < size_bytes:
            return False
    return True


def open_direct(path: Path, logical_block_size: int) -> int:
    """A descriptor with O_RDWR | O_DIRECT. Raises Unsupported if the disk's blocks are larger than the volume's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Unsupported(
                f"the file system of {path.parent} has no direct I/O", "put the state folder on ext4 or xfs"
            ) from None
        raise
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as whole, whole[:logical_block_size] as block:
            os.preadv(fd, [block], 0)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EINVAL:
            raise Unsupported(
                f"the disk under {path.parent} has blocks larger than {logical_block_size} bytes",
                "make the volume with --block-size 4096",
            ) from None
        raise
    return fd


def allocated(path: Path) -> int:
    """Bytes that the file takes on its disk."""
    return os.stat(path).st_blocks * 512
