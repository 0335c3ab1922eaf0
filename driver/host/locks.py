"""Open-file-description record locks (fcntl(2), F_OFD_SETLKW): locks that the kernel drops when their holder dies.

A `RecordLocks` has a description of its own, so two of them exclude each other also within one process. One thread each;
opened after the fork, because a forked description is shared and so would its locks be.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("hhqqi4x")
_SETLK: Final = fcntl.F_OFD_SETLK
_SETLKW: Final = fcntl.F_OFD_SETLKW


class RecordLocks:
    """Locks on byte ranges of the file behind `fd`, which is opened anew through /proc."""

    def __init__(self, fd: int) -> None:
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)

    def acquire(self, start: int, length: int = 1) -> None:
        """Wait for an exclusive lock on [start, start + length)."""
        fcntl.fcntl(self._fd, _SETLKW, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))

    def try_acquire(self, start: int, length: int = 1) -> bool:
        """Whether the lock was free and is ours now."""
        try:
            fcntl.fcntl(self._fd, _SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, start: int, length: int = 1) -> None:
        fcntl.fcntl(self._fd, _SETLKW, _FLOCK.pack(fcntl.F_UNLCK, 0, start, length, 0))

    def close(self) -> None:
        """Drop every lock held here."""
        os.close(self._fd)
