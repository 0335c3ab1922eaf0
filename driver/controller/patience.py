"""How long a claim waits for a Ready node whose plugin is away, as while it is being replaced, before it is scheduled again:
what was begun there would begin anew elsewhere. And how long such a node's capacity is the last one known. Any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

SECONDS: Final = 60.0
_KEPT_SECONDS: Final = 3600.0
"""Of claims that nobody asks for any more, that much longer than the provisioner's longest pause."""


class Patience:
    """By what waits, a volume's name for one, since when its node could not be asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the times
        self._since: dict[str, float] = {}

    def is_over(self, name: str) -> bool:
        """Whether it has waited for so long; the first time, it begins to."""
        now = self._clock()
        with self._lock:
            self._since = {key: at for key, at in self._since.items() if now - at < _KEPT_SECONDS}
            return now - self._since.setdefault(name, now) >= SECONDS

    def end(self, name: str) -> None:
        """It waits no more: the volume was made, or is scheduled again."""
        with self._lock:
            self._since.pop(name, None)
