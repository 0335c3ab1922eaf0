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


_WORDS: Final = 4
"""struct flock on 64-bit Linux (asm-generic/fcntl.h): short type, short whence, s64 start, s64 length, int pid."""

# An uncontended lock takes a microsecond, a handover of the GIL among eight threads many: so the attempt keeps the GIL
# (PyDLL), and only who must wait lets go of it (CDLL).
_attempt: Final = ctypes.PyDLL(None, use_errno=True).fcntl
_wait: Final = ctypes.CDLL(None, use_errno=True).fcntl


class RecordLocks:
    """Locks on byte ranges of the file behind `fd`, which is opened anew through /proc."""

    def __init__(self, fd: int) -> None:
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        buffer = (ctypes.c_int64 * _WORDS)()
        self._words = memoryview(buffer).cast("B").cast("q")  # SEEK_SET and a pid of 0 are zeros
        self._call = (ctypes.c_int(self._fd), ctypes.c_int(_SETLK), ctypes.byref(buffer))
        self._waiting = (ctypes.c_int(self._fd), ctypes.c_int(_SETLKW), ctypes.byref(buffer))

    def acquire(self, start: int, length: int = 1) -> None:
        """Wait for an exclusive lock on [start, start + length). Raises OSError."""
        if not self.try_acquire(start, length):
            while _wait(*self._waiting):
                self._check()

    def try_acquire(self, start: int, length: int = 1) -> bool:
        """Whether the lock was free and is ours now. Raises OSError."""
        words = self._words
        words[0] = _LOCK
        words[1] = start
        words[2] = length
        if _attempt(*self._call):
            self._check()
            return False
        return True

    def release(self, start: int, length: int = 1) -> None:
        """Give up what we hold of [start, start + length). Raises OSError."""
        words = self._words
        words[0] = _UNLOCK
        words[1] = start
        words[2] = length
        if _attempt(*self._call):
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
