"""Open-file-description record locks (fcntl(2), F_OFD_SETLKW): locks that the kernel drops when their holder dies.

A `RecordLocks` has a description of its own, so two of them exclude each other also within one process. One thread each;
opened after the fork, because a forked description is shared and so would its locks be.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final

_SETLK: Final = fcntl.F_OFD_SETLK
_SETLKW: Final = fcntl.F_OFD_SETLKW
_LOCK: Final = fcntl.F_WRLCK
_UNLOCK: Final = fcntl.F_UNLCK


class _Flock(ctypes.Structure):
    """struct flock on 64-bit Linux (asm-generic/fcntl.h)."""

    _fields_ = (
        ("type", ctypes.c_short),
        ("whence", ctypes.c_short),
        ("start", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("pid", ctypes.c_int),
    )


# An uncontended lock takes a microsecond, a handover of the GIL among eight threads many: so the attempt keeps the GIL
# (PyDLL), and only who must wait lets go of it (CDLL).
_attempt: Final = ctypes.PyDLL(None, use_errno=True).fcntl
_wait: Final = ctypes.CDLL(None, use_errno=True).fcntl
for _function in (_attempt, _wait):
    _function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]


class RecordLocks:
    """Locks on byte ranges of the file behind `fd`, which is opened anew through /proc."""

    def __init__(self, fd: int) -> None:
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._flock = _Flock()
        self._address = ctypes.addressof(self._flock)

    def acquire(self, start: int, length: int = 1) -> None:
        """Wait for an exclusive lock on [start, start + length). Raises OSError."""
        if not self.try_acquire(start, length):
            while _wait(self._fd, _SETLKW, self._address):
                self._check()

    def try_acquire(self, start: int, length: int = 1) -> bool:
        """Whether the lock was free and is ours now. Raises OSError."""
        flock = self._flock
        flock.type = _LOCK
        flock.start = start
        flock.length = length
        if _attempt(self._fd, _SETLK, self._address):
            self._check()
            return False
        return True

    def release(self, start: int, length: int = 1) -> None:
        flock = self._flock
        flock.type = _UNLOCK
        flock.start = start
        flock.length = length
        if _attempt(self._fd, _SETLK, self._address):
            self._check()

    @staticmethod
    def _check() -> None:
        """Raise the OSError that the last call left, if it is no mere contention or interruption."""
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
            raise OSError(number, os.strerror(number), "record lock")

    def close(self) -> None:
        """Drop every lock held here."""
        os.close(self._fd)
