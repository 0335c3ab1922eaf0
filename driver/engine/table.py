"""The sessions that this node has a record of, in memory and on disk, and the meters of those that run. Any thread."""

from __future__ import annotations

import threading

from driver.engine.clients import KeeperClient
from driver.engine.meter import Meter
from driver.engine.records import Folder, SessionRecord
from driver.engine.volumes import Volumes

RUNNING = ("preparing", "uploading")
"""States of a session that has not ended."""


def sweep_key(session: str) -> str:
    """The key of a session's sweeper with the keeper."""
    return f"sweep-{session}"


def packs_role(session: str) -> str:
    """The role of a session's pack buffers with the keeper."""
    return f"packs-{session}"


def session_of_role(role: str) -> str | None:
    """The session whose pack buffers the role names, if it does."""
    return role.removeprefix("packs-") if role.startswith("packs-") else None


class Table:
    """Records by session id. What is shown of a session changes by `save` and `show` only."""

    def __init__(self, folder: Folder, volumes: Volumes, keeper: KeeperClient) -> None:
        self._folder = folder
        self._volumes = volumes
        self._keeper = keeper
        self._lock = threading.Lock()  # guards the three below
        self._records = {record.id: record for record in folder.sessions()}
        self._meters: dict[str, Meter] = {}
        self._aborted: set[str] = set()

    def record(self, session: str) -> SessionRecord | None:
        """The record of a session's id."""
        with self._lock:
            return self._records.get(session)

    def all(self) -> list[SessionRecord]:
        """All records, the oldest first."""
        with self._lock:
            return sorted(self._records.values(), key=lambda record: (record.created, record.name))

    def add(self, record: SessionRecord) -> bool:
        """Take the session's place, in memory only. Whether it was free."""
        with self._lock:
            return self._records.setdefault(record.id, record) is record

    def save(self, record: SessionRecord) -> SessionRecord:
        """Durably, then for all to see. Raises OSError."""
        self._folder.save_session(record)
        self.show(record)
        return record

    def show(self, record: SessionRecord) -> None:
        """For all to see; it is saved already."""
        with self._lock:
            self._records[record.id] = record

    def forget(self, record: SessionRecord) -> None:
        """Drop the record, here and on disk."""
        self.drop_meter(record)
        self._volumes.end_session(record.volume_id, record.id)
        with self._lock:
            self._records.pop(record.id, None)
            self._aborted.discard(record.id)
        self._folder.remove_session(record.id)

    def abort(self, session: str) -> None:
        """Note that the session is to end without a commit."""
        with self._lock:
            self._aborted.add(session)

    def is_aborted(self, session: str) -> bool:
        """Whether the session is to end without a commit."""
        with self._lock:
            return session in self._aborted

    def known_meter(self, record: SessionRecord) -> Meter | None:
        """The session's meter, if one was made."""
        with self._lock:
            return self._meters.get(record.id)

    def meter(self, record: SessionRecord) -> Meter:
        """The session's meter, made if there is none. Raises NotFound if its memory is gone."""
        meter = self.known_meter(record)
        if meter is None:
            memory, packs = self._keeper.take(record.volume_id, ["memory", packs_role(record.id)])
            made = Meter(memory, packs)
            with self._lock:
                meter = self._meters.setdefault(record.id, made)
            if meter is not made:  # another thread was first
                made.close()
        return meter

    def drop_meter(self, record: SessionRecord) -> None:
        with self._lock:
            meter = self._meters.pop(record.id, None)
        if meter is not None:
            meter.close()
