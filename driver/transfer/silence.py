"""How long a session has not been heard of in its repository. Any thread of the sender.

Garbage collection gives a session up that has not renewed its pending.json for a day; so one that could not for half a day
ends by itself, before it commits. The time is kept in the session's memory, where the successor of a sender finds it, by a
clock that goes on while the machine sleeps. It is looked at before every attempt of a request: one may be repeated for days.
"""

from __future__ import annotations

import threading

from driver.core.errors import SnapshotFailed
from driver.host.clock import boottime
from driver.transfer.catalog import SILENCE_SECONDS
from driver.transfer.packbuffer import Header, PackBuffers


class Silence:
    """Of the session whose memory `packs` is."""

    def __init__(self, packs: PackBuffers) -> None:
        self._packs = packs
        self._lock = threading.Lock()  # guards the word against two threads of this process
        if not packs.get(Header.HEARD_MILLISECONDS):
            self.heard(boottime())

    def heard(self, at: float) -> None:
        """pending.json was written, in a request that began at `at`, by `boottime`."""
        with self._lock:
            self._packs.set(Header.HEARD_MILLISECONDS, round(at * 1000))

    def check(self) -> None:
        """Raises SnapshotFailed if it was silent for too long."""
        silent = boottime() - self._packs.get(Header.HEARD_MILLISECONDS) / 1000
        if silent > SILENCE_SECONDS:
            raise SnapshotFailed(
                f"for {silent / 3600:.0f} hours the session could not tell its repository that it is alive",
                "garbage collection may have given it up by now: take the snapshot again, by another name",
            )
