"""A word of shared memory by which a run slows or stops a server, and a count of the bytes that it took in.

Two u64 in a mapped file, each stored by one side only: the rate (bytes a second; 0: nothing is answered) by the
benchmark, the count by the server's process.
"""

from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path
from typing import Final

FAST: Final = 1 << 62
_RATE: Final = 0
_COUNT: Final = 1
_POLL_SECONDS: Final = 0.02


class Gate:
    """Both sides' view of the file. In the server's process any thread may pass the gate."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE)).cast("Q")
        if create:
            self._words[_RATE] = FAST
        self._lock = threading.Lock()  # guards the count and `_next`
        self._next = 0.0

    def set_rate(self, bytes_per_second: int) -> None:
        self._words[_RATE] = bytes_per_second

    @property
    def count(self) -> int:
        """Bytes that clients have sent."""
        return self._words[_COUNT]

    def wait_open(self) -> None:
        """Return when the server may answer."""
        while not self._words[_RATE]:
            time.sleep(_POLL_SECONDS)

    def slice_bytes(self) -> int:
        """How much to take from a client at once: little where that is a matter of seconds."""
        return 1 << 20 if self._words[_RATE] == FAST else 1 << 16

    def passed(self, count: int) -> None:
        """Count bytes that were taken, and wait as long as the rate asks."""
        with self._lock:
            self._words[_COUNT] += count
            rate = self._words[_RATE]
            now = time.monotonic()
            if rate == FAST:
                return
            self._next = max(self._next, now) + (count / rate if rate else 0)
            wait = self._next - now
        time.sleep(wait)
        self.wait_open()
