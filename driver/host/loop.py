"""Loop devices with direct I/O (include/uapi/linux/loop.h), through device nodes of our own.

Every call may wait for the file's FUSE server, so none may run in a process that such a server depends on. A device is
known by its number and disk sequence number (/sys/block/loopN/diskseq, Linux 5.15), which the kernel never gives twice
in a boot: its label cannot be read any more once its FUSE server is dead. What is not in a record of ours is not touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from driver.core.errors import FailedPrecondition, NotPermitted, Unsupported
from driver.core.sizes import MIB

_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_CAPACITY: Final = 0x4C07
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LO_FLAGS_AUTOCLEAR: Final = 4
_LO_FLAGS_DIRECT_IO: Final = 16
_BLKROSET: Final = 0x125D
_MAJOR: Final = 7
_VOLUMES_FILE: Final = re.compile(r"/run/disks/[0-9a-f-]{36}$")
_CONFIG: Final = struct.Struct("<II5Q4I64s64s32s2Q64x")
_INFO_BYTES: Final = 232
_INFO_FLAGS: Final = 52
"""Where lo_flags stands in struct loop_info64."""
DISCARD_BYTES_MAX: Final = MIB
"""A discard of 4 GiB would hold loop's worker for seconds; 0 would disable discards for good."""

_CLEAR_SECONDS: Final = 5.0
_GONE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """An attached loop device, or one that was."""

    number: int
    sequence: int
    boot: str

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> Self:
        """The device of a note that was made of one."""
        return cls(noted["number"], noted["sequence"], noted["boot"])

    def exists(self) -> bool:
        """Whether it is still attached, to what it was attached to."""
        with contextlib.suppress(OSError):  # it goes at this moment
            if (_queue(self.number) / "loop").exists() and _sequence(self.number) == self.sequence:
                return _boot() == self.boot
        return False

    def is_leaving(self) -> bool:
        """Whether it goes with its last user: a `detach` was broken off, which `stay` undoes."""
        with contextlib.suppress(OSError):
            return self.exists() and (_queue(self.number) / "loop/autoclear").read_text().strip() == "1"
        return False


def _queue(number: int) -> Path:
    return Path(f"/sys/block/loop{number}")


def _sequence(number: int) -> int:
    return int((_queue(number) / "diskseq").read_text())


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _no_note(device: LoopDevice) -> None:
    pass


def attach(
    file: str, node: str, block_size: int, label: str, note: Callable[[LoopDevice], None] = _no_note
) -> LoopDevice:
    """Make the block device `node` on `file`, with logical blocks of `block_size` bytes and `label` as lo_file_name.

    Whoever dies before `note` has returned leaves no device: until then the kernel takes it away with its last user, who
    is its maker. Raises Unsupported if there is no loop driver or no direct I/O, NotPermitted, or OSError. Leaves nothing
    on failure.
    """
    backing = os.open(file, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        number, fd = _configure(backing, node, block_size, label)
    finally:
        os.close(backing)
    queue = _queue(number)
    try:
        device = LoopDevice(number, _sequence(number), _boot())
        if (queue / "loop/dio").read_text().strip() != "1":
            raise Unsupported(
                f"loop{number} does not use direct I/O on a file with blocks of {block_size} bytes",
                "make the volume with --block-size 4096",
            )
        with contextlib.suppress(OSError):  # a kernel without discard on this file
            (queue / "queue/discard_max_bytes").write_text(str(DISCARD_BYTES_MAX))
        note(device)
        _keep(fd)
        return device
    except BaseException:
        os.unlink(node)
        raise
    finally:
        os.close(fd)


def _configure(backing: int, node: str, block_size: int, label: str) -> tuple[int, int]:
    """The number of a device that goes when the descriptor is closed, and that descriptor."""
    flags = _LO_FLAGS_DIRECT_IO | _LO_FLAGS_AUTOCLEAR
    config = _CONFIG.pack(backing, block_size, 0, 0, 0, 0, 0, 0, 0, 0, flags, label.encode(), b"", b"", 0, 0)
    for _ in range(50):
        number = _free_number()
        _make_node(node, number)
        device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            fcntl.ioctl(device, _BLKROSET, struct.pack("i", 0))  # a mark that outlives whoever had the device before us
            return number, device
        except OSError as error:
            os.close(device)
            os.unlink(node)
            if error.errno != errno.EBUSY:
                raise
    raise FailedPrecondition("other programs took every free loop device at the moment it was to be used")


def _free_number() -> int:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unsupported("there is no /dev/loop-control", "load the kernel module: modprobe loop") from None
    except PermissionError:
        raise NotPermitted("/dev/loop-control may not be opened", "run the engine as root, privileged") from None
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _make_node(node: str, number: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(node)
    os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(_MAJOR, number))


def check_unused(node: str) -> None:
    """Raises FailedPrecondition if the device is mounted or otherwise claimed."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FailedPrecondition(f"{node} is in use", "unmount its file system first") from None
        raise


def _open(node: str, device: LoopDevice) -> int | None:
    """The device, by its node, which is made anew; None if it is gone. While it is open, its number is no other's."""
    if not device.exists():
        return None
    _make_node(node, device.number)
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    if device.exists():
        return fd
    os.close(fd)
    return None


def detach(node: str, device: LoopDevice) -> None:
    """Take the device away, if it is still that one, and its node. Nothing happens if that was done before.

    Raises FailedPrecondition if somebody has it open; then it stays, also when that one lets go of it.
    """
    fd = _open(node, device)
    if fd is not None:
        try:
            check_unused(node)
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        finally:
            os.close(fd)
        deadline = time.monotonic() + _CLEAR_SECONDS
        while device.exists():
            if time.monotonic() > deadline and stay(node, device):
                raise FailedPrecondition(f"a program still has {node} open", f"find it with: fuser -v {node}")
            time.sleep(0.005)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(node)


def stay(node: str, device: LoopDevice) -> bool:
    """Have the kernel keep the device, which LOOP_CLR_FD told it to take away with its last user. Whether it is there."""
    with contextlib.suppress(OSError):  # it goes at this moment, or its FUSE server is dead: nobody needs it any more
        fd = _open(node, device)
        if fd is not None:
            try:
                _keep(fd)
            finally:
                os.close(fd)
    return device.exists()


def _keep(fd: int) -> None:
    """Have the kernel not take the device away with its last user."""
    info = bytearray(_INFO_BYTES)
    fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
    (flags,) = struct.unpack_from("<I", info, _INFO_FLAGS)
    struct.pack_into("<I", info, _INFO_FLAGS, flags & ~_LO_FLAGS_AUTOCLEAR)
    fcntl.ioctl(fd, _LOOP_SET_STATUS64, info)


def is_of_an_engine(device: str) -> bool:
    """Whether `device`, "major:minor", is a loop device on a volume's file, by the path that the kernel shows of it.

    That is the path in the namespace of the engine that attached it; "/" when that one has handed over.
    """
    with contextlib.suppress(OSError):
        path = (Path("/sys/dev/block") / device / "loop/backing_file").read_text().rstrip("\n")
        return path == "/" or _VOLUMES_FILE.search(path) is not None
    return False


def abandon(node: str, device: LoopDevice) -> bool:
    """Have the kernel take the device away when its last user lets go of it (loop(4), LOOP_CLR_FD), and remove its node.

    For the device of an engine that is gone: there is nothing behind it any more. Whether it is gone at once.
    """
    fd = _open(node, device)
    if fd is not None:
        try:
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        finally:
            os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(node)
    deadline = time.monotonic() + _GONE_SECONDS
    while device.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return not device.exists()


def resize(node: str) -> None:
    """Make the device take over its file's new size. Raises OSError."""
    device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _LOOP_SET_CAPACITY)
    finally:
        os.close(device)


def size_bytes(node: str) -> int:
    """The size of a block device. Raises OSError."""
    device = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(device, 0, os.SEEK_END)
    finally:
        os.close(device)
