"""How fast the sweeper may go: it gives way to the volume's users, and does not outrun the sender."""

from __future__ import annotations

import time
from typing import Final

from driver.volume.backing import READS_MAX
from driver.volume.layout import Shared, SlotWord, Word

_BUSY_WITHIN_NANOSECONDS: Final = 20_000_000
_FULL_SHARE: Final = 2
_BACKLOG_SECONDS: Final = 1.0
SLICES_MAX: Final = READS_MAX
_LIFE_SECONDS: Final = 1.0
"""The sweeper shows that it is alive at least so often."""


class Pace:
    """Sleeps of the sweeper. `bytes_per_second` 0 means no limit but the users' needs."""

    def __init__(self, shared: Shared, bytes_per_second: int) -> None:
        self._shared = shared
        self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0.0
        self.due = time.monotonic()
        """When what was read so far is due at the rate."""
        self._slots = [shared.slot_words(number) for number in range(shared.words[Word.SLOT_COUNT])]

    def buffer_fills(self) -> bool:
        """Whether over half of the pre-image memory is in use: then the seals that free most come first."""
        words = self._shared.words
        return words[Word.USED] * _FULL_SHARE > words[Word.MEMORY_LIMIT]

    def slices(self) -> int:
        """How many slices to read at once: `SLICES_MAX` while nobody uses the volume, else one."""
        return 1 if self._latency_of_users() else SLICES_MAX

    def after(self, length_bytes: int) -> None:
        """Wait as the rate asks for what was read; without one, as long as the users' last answer took, if they are there.

        Who fell behind the rate, waiting for a pack buffer or the disk, makes up for it, at most a second's worth.
        """
        if not length_bytes:
            return
        if not self._seconds_per_byte:
            wait = self._latency_of_users()
        else:
            now = time.monotonic()
            self.due = max(self.due + length_bytes * self._seconds_per_byte, now - _BACKLOG_SECONDS)
            wait = self.due - now
        while wait > 0:
            self._shared.words[Word.SWEEP_NANOSECONDS] = time.monotonic_ns()
            time.sleep(min(wait, _LIFE_SECONDS))
            wait -= _LIFE_SECONDS

    def _latency_of_users(self) -> float:
        """Seconds of the slowest last answer among those of the last 20 ms; 0 if nobody is there."""
        since = time.perf_counter_ns() - _BUSY_WITHIN_NANOSECONDS
        slowest = 0
        for words in self._slots:
            if words[SlotWord.LAST] > since:
                slowest = max(slowest, words[SlotWord.LATENCY])
        return min(slowest / 1e9, 0.005)
