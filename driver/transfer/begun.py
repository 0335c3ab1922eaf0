"""What the supervisor has learned by beginning sessions, for their first senders: so that these need not ask again.

Held in memory, and of few sessions: a sender that gets nothing looks for itself, as a sender's successor does. Any thread.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from driver.core.settings import Repository
from driver.transfer import records, specs
from driver.transfer.records import Manifest

_KEPT: Final = 16
"""Sessions. What is kept of one is its parent's manifest: 200 bytes a GiB of the volume."""


class _Known(NamedTuple):
    repository: Repository
    repository_id: str
    parent: str | None


class Begun:
    """Of the sessions that were begun last, and that have no sender yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _known
        self._known: dict[str, _Known] = {}

    def note(self, snapshot: str, repository: Repository, repository_id: str, parent: Manifest | None) -> None:
        """A session began in that repository and builds on `parent`."""
        text = None if parent is None else records.encode(parent).decode()
        with self._lock:
            self._known.pop(snapshot, None)
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[snapshot] = _Known(repository, repository_id, text)

    def take(self, spec: specs.Send, repository: Repository) -> specs.Seen | None:
        """What was seen when that session began, once; nothing if `repository`, its settings now, may be another place."""
        with self._lock:
            known = self._known.pop(spec.snapshot.id, None)
        if known is None or (known.repository, known.repository_id) != (repository, spec.repository_id):
            return None
        return specs.Seen(known.parent)
