"""An upload rate, kept smooth: every run of bytes waits for its turn. Any thread."""

from __future__ import annotations

import threading
import time
from typing import Final

_CATCH_UP_SECONDS: Final = 0.25


class Rate:
    """`bytes_per_second` over all threads; what a pause left unused within a quarter of a second may be made up for."""

    def __init__(self, bytes_per_second: int) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()  # guards _turn
        self._turn = time.monotonic()

    def wait(self, length: int) -> None:
        """Sleep until `length` more bytes may go."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._turn, now - _CATCH_UP_SECONDS)
            self._turn = turn + length / self._bytes_per_second
        if turn > now:
            time.sleep(turn - now)
