"""System calls that Python's standard library does not wrap, through ctypes (which releases the GIL). Any thread."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long

# include/uapi/linux/mount.h and include/linux/fs.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 1 << 4
MS_MANDLOCK: Final = 1 << 6
MS_DIRSYNC: Final = 1 << 7
MS_NOSYMFOLLOW: Final = 1 << 8
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_REC: Final = 0x4000
MS_SILENT: Final = 1 << 15
MS_SLAVE: Final = 1 << 19
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
"""Numbers of the new system calls are the same on every architecture."""
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR: Final = struct.Struct("QQQQ")
_MOUNT_ATTR_RDONLY: Final = 1

_CLONE_NEWNS: Final = 0x00020000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_IO_FLUSHER: Final = 57
_M_ARENA_MAX: Final = -8

_SYS_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_CMD_GLOBAL_EXPEDITED: Final = 2
_MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED: Final = 4
MADV_POPULATE_WRITE: Final = 23


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    _check(_libc.fallocate(fd, mode, offset, length), "fallocate")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError with the target as its file name."""
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()), target)


def bind_mount(source: str, target: str, *, read_only: bool) -> None:
    """Attach a clone of what is at `source` (a folder or a file) to `target`, read-only from its first moment on.

    The source mount's own flags (nosuid, nodev, noatime and so on) are kept. A target that is a symbolic link is not
    followed. Needs Linux 5.12 (open_tree(2), mount_setattr(2), move_mount(2)). Raises OSError.
    """
    fd = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC))
    _check(min(fd, 0), source)
    try:
        if read_only:
            attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_RDONLY, 0, 0, 0)
            size = ctypes.c_size_t(_MOUNT_ATTR.size)
            _check(_libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, attributes, size), target)
        _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH), target)
    finally:
        os.close(fd)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError with the target as its file name."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def unshare_mounts() -> None:
    """Give the calling process a mount namespace of its own, which still receives the host's new mounts."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    mount("none", "/", "none", MS_REC | MS_SLAVE)


def enter_mounts(fd: int) -> None:
    """Join the mount namespace behind `fd` (/proc/PID/ns/mnt). Single-threaded processes only."""
    _check(_libc.setns(fd, _CLONE_NEWNS), "setns")


def syncfs(fd: int) -> None:
    """Write back the file system that `fd` is on. Raises OSError."""
    _check(_libc.syncfs(fd), "syncfs")


def capabilities() -> int:
    """The effective ones of this thread, a bit each (proc_pid_status(5), linux/capability.h)."""
    status = Path("/proc/thread-self/status").read_text()
    return int(status.partition("\nCapEff:")[2].split()[0], 16)


def mlock(address: int, length: int) -> None:
    """Keep [address, address + length) in memory (mlock(2)). Raises OSError: EPERM, ENOMEM beyond RLIMIT_MEMLOCK."""
    _check(_libc.mlock(address, length), "mlock")


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when the thread that forked it ends; exits at once if `parent` is gone already."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def no_core_dump() -> None:
    """No core dump and no ptrace by other users: memory holds the volumes' data, or keys."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def spare_from_oom_killer(pid: int) -> None:
    """When memory runs out, the kernel takes others first (proc(5), oom_score_adj). What it forks inherits that. Raises
    OSError without CAP_SYS_RESOURCE."""
    with open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("-900")


def offer_to_oom_killer(pid: int) -> None:
    """When memory runs out, this process goes first; it is started again. Raises OSError."""
    with open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("500")


def set_process_name(name: str) -> None:
    """The thread's comm, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0)


def be_io_flusher() -> None:
    """Memory that this process allocates must not wait for I/O of its own volume. Without the privilege: no effect."""
    _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def one_malloc_arena() -> None:
    """Have all threads share one heap (mallopt(3)): the GIL lets one of them allocate at a time anyway."""
    _libc.mallopt(_M_ARENA_MAX, 1)


def register_barrier() -> None:
    """Make `barrier_everywhere` reach this process's threads."""
    _libc.syscall(_SYS_MEMBARRIER.get(platform.machine(), 324), _MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0)


def barrier_everywhere() -> None:
    """A full memory barrier on every running thread of every registered process (membarrier(2)). Raises OSError."""
    number = _SYS_MEMBARRIER.get(platform.machine(), 324)
    _check(_libc.syscall(number, _MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0), "membarrier")
