"""One operation on one thing at a time: who comes second is told to come again (ABORTED), not kept waiting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from driver.core.errors import Busy


class Operations:
    """What is in hand, by key. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the set
        self._keys: set[str] = set()

    @contextlib.contextmanager
    def on(self, *keys: str) -> Iterator[None]:
        """Have the keys for ourselves. Raises Busy if another call has one."""
        wanted = set(keys)
        with self._lock:
            taken = wanted & self._keys
            if taken:
                raise Busy(f"another call for {', '.join(sorted(taken))} is in hand")
            self._keys |= wanted
        try:
            yield
        finally:
            with self._lock:
                self._keys -= wanted
