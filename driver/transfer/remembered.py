"""What was read of a store's committed snapshots, so that the next look reads only what is new. Any thread.

A manifest that commits a snapshot never changes. One that comes under its name after it was collected has another time in
the store's listings.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any, Final

from driver.store.port import Listed

Summary = dict[str, Any]
SNAPSHOTS_MAX: Final = 4096
"""About 3 KiB each. Of more than so many the others are read again at every look."""


class Remembered:
    """Summaries by their manifests, as a listing shows those. Whoever gets one must not change it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the summaries
        self._summaries: dict[Listed, Summary] = {}

    def get(self, manifest: Listed | None) -> Summary | None:
        with self._lock:
            return self._summaries.get(manifest) if manifest is not None else None

    def add(self, manifest: Listed, summary: Summary) -> None:
        with self._lock:
            if len(self._summaries) < SNAPSHOTS_MAX:
                self._summaries[manifest] = summary

    def keep_only(self, manifests: Collection[Listed]) -> None:
        """Forget what a listing of all snapshots does not have any more."""
        with self._lock:
            self._summaries = {key: self._summaries[key] for key in manifests if key in self._summaries}
