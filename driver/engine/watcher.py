"""Watches the running sessions to their commit or failure, and ends them. One thread a session.

What a session is made of survives this service: memory and sweeper with the keeper, the sender with the transfer
supervisor, the record on disk. A new service finds them again by the record.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from driver.core.errors import (
    AccessDenied,
    DataCorrupt,
    EngineUnavailable,
    FailedPrecondition,
    Internal,
    NotFound,
    RepositoryMissing,
    RepositoryUnavailable,
    SnapshotFailed,
    StillframeError,
)
from driver.engine.clients import KeeperClient, TransferClient
from driver.engine.jobs import Jobs
from driver.engine.meter import Meter, failure_of
from driver.engine.records import Folder, SessionRecord, VolumeRecord
from driver.engine.settings import Settings
from driver.engine.shares import Shares
from driver.engine.table import RUNNING, Table, packs_role, session_of_role, sweep_key
from driver.engine.volumes import Volumes
from driver.host import disks, files
from driver.host.log import say
from driver.volume.layout import running_session

_DRAIN_SECONDS: Final = 0.5
"""Writes wait while the end of a session waits for one in hand: not long, and again later."""
_AGAIN_SECONDS_MAX: Final = 30.0
_POLL_SECONDS: Final = 0.05
_SILENT_SECONDS: Final = 5.0
"""A sweeper that has not moved for so long hangs."""
_DAMAGE: Final = (DataCorrupt.__name__, Internal.__name__)
"""Kinds of errors that a sender which builds on nothing does not meet, or not again."""
_DELETED: Final = SnapshotFailed("it was deleted while it was being made")
_LOST_CLONE: Final = FailedPrecondition(
    "the engine was stopped, or lost its power, before the clone was made", "clone the volume again"
)


_AGAIN: Final = "again"
"""Of an outcome: what the sender wants the next session to send again; no field of a record."""


_LOST: Final = "the engine was stopped, or lost its power, before the snapshot was complete"


def _lost(more: str = "") -> dict[str, str]:
    return SnapshotFailed(_LOST + more, "take it again, by another name").to_message()


def _explained(record: SessionRecord, error: dict[str, Any]) -> dict[str, Any]:
    """A sender's error, with what it means for the snapshot that it built on, and for the next one."""
    if record.parent and error.get("kind") == AccessDenied.__name__:
        only = "if it is only what earlier snapshots stored that cannot be read: stillframe snapshot create --full"
        return {**error, "hint": "; ".join(filter(None, (error.get("hint"), only)))}
    if not _blames_parent(record, error):
        return error
    hint = "the next snapshot of this volume is a full one and does not need what this one built on"
    if error["kind"] == DataCorrupt.__name__:
        hint += f"; see what is left of that: stillframe snapshot verify {(record.parent or {})['id']}"
    return {**error, "hint": "; ".join(filter(None, (error.get("hint"), hint)))}


def _blames_parent(record: SessionRecord, error: dict[str, Any] | None) -> bool:
    return bool(record.parent) and (error or {}).get("kind") in _DAMAGE


def catalog_job(record: SessionRecord) -> str:
    """The name of all small jobs about a session's place in its repository: they are done one after another."""
    return f"catalog-{record.id}"


class Watcher:
    """Starts what works for a session, and brings each session to its end."""

    def __init__(
        self, folder: Folder, settings: Settings, volumes: Volumes, keeper: KeeperClient, transfer: TransferClient,
        table: Table, shares: Shares, jobs: Jobs,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._settings = settings
        self._volumes = volumes
        self._keeper = keeper
        self._transfer = transfer
        self._table = table
        self._shares = shares
        self._jobs = jobs
        self._kicked: dict[str, float] = {}  # when a hung sweeper was killed; each session's thread has its own entry

    def start(self, record: SessionRecord) -> None:
        argument = {
            "session": record.id, "packs": packs_role(record.id), "bytes_per_second": self._settings.upload_rate,
        }  # fmt: skip
        self._keeper.keep(record.volume_id, sweep_key(record.id), "sweep", argument)
        self._thread(self._watch, record)

    @staticmethod
    def _thread(main: Callable[[str], None], record: SessionRecord) -> None:
        threading.Thread(target=main, args=[record.id], name=f"session-{record.name}", daemon=True).start()

    # --- after a restart of this service

    def find_again(self) -> None:
        """Go on with the sessions whose memory the keeper still holds; settle those that have lost it."""
        alive: set[str] = set()
        for volume, held in self._keeper.list()["volumes"].items():
            running = self._session_in_memory(volume)
            roles = {session for session in map(session_of_role, held["roles"]) if session is not None}
            for session in roles if running is None else {*roles, running}:
                record = self._table.record(session)
                if record is not None and record.state == "uploading" and session == running and session in roles:
                    alive.add(session)
                    self._volumes.set_session(volume, session)
                    self.start(record)
                elif record is None or record.state not in RUNNING:
                    arguments = [volume, session, record]
                    threading.Thread(target=self._release_for_good, args=arguments, daemon=True).start()
        for record in self._table.all():
            if record.state in RUNNING and record.id not in alive:
                self._thread(self._settle, record)
            elif record.state not in RUNNING and record.target is not None:
                self._thread(self._finish_clone, record)

    def _session_in_memory(self, volume: str) -> str | None:
        (memory,) = self._keeper.take(volume, ["memory"])
        try:
            return running_session(memory)
        finally:
            os.close(memory)

    def _release_for_good(self, volume_id: str, session: str, record: SessionRecord | None) -> None:
        """Give back the memory of a session that ended just before this service was started, or of which there is no record
        any more. The whole of a thread."""

        def release() -> None:
            with contextlib.suppress(NotFound):
                self._transfer.cancel(session)
            self._release_and_close(volume_id, session, is_base=record is not None and self._note_base(record))

        self._insist(session, release)

    @staticmethod
    def _insist(session: str, do: Callable[[], object]) -> None:
        """Do it, again and again until that works."""
        wait = 0.1
        while True:
            try:
                do()
                return
            except (StillframeError, OSError) as error:
                say("engine", f"session {session}: {error}; trying again")
                time.sleep(wait)
                wait = min(2 * wait, _AGAIN_SECONDS_MAX)

    def _settle(self, session: str) -> None:
        """Decide what becomes of a session that has lost its memory: failed, unless it was committed before. The whole of a
        thread."""
        wait = 0.1
        while True:
            record = self._table.record(session)
            if record is None or record.state not in RUNNING:
                return
            try:
                self._cancel(record)
                self._release_and_close(record.volume_id, record.id)
                self._settled(record)
                return
            except (RepositoryUnavailable, RepositoryMissing, EngineUnavailable, FailedPrecondition, OSError) as error:
                if self._table.is_aborted(record.id):
                    self._table.save(record.changed(state="aborted", error=_DELETED.to_message()))
                    return
                say("engine", f"session {record.name}: {error}; trying again")
                time.sleep(wait)
                wait = min(2 * wait, _AGAIN_SECONDS_MAX)
            except StillframeError as error:
                lost = _lost(f"; asked for it, its repository says: {error}")
                self._table.save(record.changed(state="failed", error=lost))
                return

    def _settled(self, record: SessionRecord) -> None:
        if record.target is not None:
            self._drop_clone(record, _LOST_CLONE.to_message())
            return
        if record.state == "preparing":
            self.withdraw(record)
            self._table.forget(record)  # nobody was told of it
            return
        try:
            spec = self._named(record) | {"repository_id": record.repository_id, "reason": _LOST}
            found = self._transfer.ask(catalog_job(record), "settle", spec)
        except RepositoryMissing:
            raise
        except NotFound:
            found = {}
        of = found.get("volume") or {}
        if found.get("state") == "committed" and (of.get("id"), found["created"]) == (record.volume_id, record.created):
            figures = {key: found[key] for key in ("uploaded_bytes", "requests", "stored_bytes")}
            record = self._table.save(record.changed(state="committed", statistics=found["session"], uploaded=figures))
            self._note_base(record)
            return
        self._table.save(record.changed(state="failed", error=_lost()))

    def withdraw(self, record: SessionRecord, since: str | None = None) -> None:
        """Take back the pending.json of a session that came to nothing before its sender was started, unless it was begun
        before `since`: then it is another one's. Raises what the repository answers."""
        self._transfer.ask(catalog_job(record), "withdraw", self._named(record) | {"since": since})

    def _named(self, record: SessionRecord) -> dict[str, Any]:
        """What tells a session from others of the same name."""
        return {
            "repository": record.repository, "snapshot": record.id, "volume": record.volume_id,
            "node": self._settings.node,
        }  # fmt: skip

    # --- watch and end

    def _watch(self, session: str) -> None:
        """Until the session has ended. The outermost loop of its thread."""
        outcome = None
        while True:
            record = self._table.record(session)
            if record is None or record.state not in RUNNING:
                return
            try:
                outcome = outcome or self._look(record)
                if outcome is not None:
                    self._end(record, outcome)
            except (StillframeError, OSError) as error:
                say("engine", f"session {record.name}: {error}; trying again")
                time.sleep(1.0)

    def _look(self, record: SessionRecord) -> dict[str, Any] | None:
        """The record's changes if the session has come to its end."""
        if self._table.is_aborted(record.id):
            return {"state": "aborted", "error": _DELETED.to_message()}
        meter = self._table.meter(record)
        failure = failure_of(meter.shared, record)
        if failure is not None:
            return {"state": "failed", "error": failure.to_message()}
        try:
            status = self._transfer.status(record.id, 0.2)
        except NotFound:
            self._start_sender(record)
            return None
        except EngineUnavailable:
            time.sleep(_POLL_SECONDS)
            return None
        if status["state"] == "running":
            self._shares.settle()
            self._note_statistics(record, meter)
            return self._look_at_sweeper(record, meter)
        if status["state"] == "done":
            return {"state": "committed", _AGAIN: status["result"]["again"] if record.target is None else []}
        return {"state": "failed", "error": _explained(record, status["error"])}

    def _note_statistics(self, record: SessionRecord, meter: Meter) -> None:
        """Once the sweep is done, leave the session's figures to the sender, which puts them into the manifest."""
        path = self._statistics(record)
        if meter.swept() and not path.exists():
            files.write_json(path, meter.read(record)["session"])

    def _statistics(self, record: SessionRecord) -> Path:
        return self._folder.session_folder(record.id) / "statistics.json"

    def _look_at_sweeper(self, record: SessionRecord, meter: Meter) -> dict[str, Any] | None:
        process = self._keeper.show(record.volume_id, sweep_key(record.id))
        if process is not None and not process["finished"]:
            self._kick_if_hung(record, meter, process["pid"])
            return None
        if meter.swept() or failure_of(meter.shared, record) is not None:
            return None
        error = SnapshotFailed("its sweeper died again and again", "the engine's log says of what")
        return {"state": "failed", "error": error.to_message()}

    def _kick_if_hung(self, record: SessionRecord, meter: Meter, pid: int) -> None:
        """A sweeper that stands still may hold a chunk's lock, which a write waits for. A new one has as long as the old."""
        silent = min(meter.sweeper_silent_seconds(), time.monotonic() - self._kicked.get(record.id, 0.0))
        if silent > _SILENT_SECONDS and not meter.swept():
            say("engine", f"session {record.name}: its sweeper ({pid}) has not moved for {silent:.0f} s; starting another")
            self._kicked[record.id] = time.monotonic()
            self._keeper.kick(record.volume_id, sweep_key(record.id))

    def _start_sender(self, record: SessionRecord) -> None:
        (packs,) = self._keeper.take(record.volume_id, [packs_role(record.id)])
        try:
            if record.target is not None:
                self._start_copy(record, packs)
            else:
                self._start_upload(record, packs)
        finally:
            os.close(packs)

    def _start_upload(self, record: SessionRecord, packs: int) -> None:
        folder = self._folder.session_folder(record.id)
        spool = os.open(folder / "spool", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._transfer.start(
                record.id, "send",
                {
                    "repository": record.repository, "repository_id": record.repository_id,
                    "snapshot": {"id": record.id, "name": record.name, "created": record.created},
                    "volume": {
                        "id": record.volume_id, "name": record.volume_name, "size_bytes": record.size_bytes,
                        "logical_block_size": record.logical_block_size,
                    },
                    "lineage": record.lineage, "node": self._settings.node,
                    "upload_rate_bytes": self._settings.upload_rate,
                    "statistics_path": str(self._statistics(record)), "group": record.group,
                    "parent": {key: record.parent[key] for key in ("id", "created")} if record.parent else None,
                    "pending_chunks": record.pending_chunks, "conditional_put": record.conditional_put,
                },
                [packs, spool],
            )  # fmt: skip
        finally:
            os.close(spool)

    def _start_copy(self, record: SessionRecord, packs: int) -> None:
        """What stands in a sender's place for a clone."""
        target = self._volumes.by_id(record.target or "")
        backing = disks.open_direct(self._volumes.disk(target), record.logical_block_size)
        try:
            self._transfer.start(record.id, "clone", {"size_bytes": record.size_bytes}, [packs, backing])
        finally:
            os.close(backing)

    def _finish_clone(self, session: str) -> None:
        """Do what the end of a clone still asks for, which was noted just before this service was started. The whole of a
        thread."""
        record = self._table.record(session)
        if record is not None:
            self._insist(record.name, lambda: self._clone_ended(record))

    def _drop_clone(self, record: SessionRecord, error: dict[str, Any]) -> None:
        """Take away what a failed clone made, once its job says why. Its record goes last."""

        def drop(target: VolumeRecord) -> None:
            self._jobs.note_failure(target.restore_job or "", error)
            self._volumes.forget(target)

        self._with_target(record, drop)
        self._table.forget(record)

    def _clone_ended(self, record: SessionRecord) -> None:
        """The clone is available, or gone. May be done again. Raises OSError, StillframeError."""
        if record.state != "committed":
            say("engine", f"clone of {record.volume_name}: {record.error}")
            self._drop_clone(record, record.error or {})
            return
        self._with_target(record, lambda target: self._volumes.save(target.changed(state="available", restore_job=None)))
        self._table.forget(record)

    def _with_target(self, record: SessionRecord, do: Callable[[VolumeRecord], object]) -> None:
        """Do something with the volume that a clone is made into, unless it is available already, or gone."""
        with contextlib.suppress(NotFound):
            name = self._volumes.by_id(record.target or "").name
            with self._volumes.locked(name):
                target = self._volumes.by_id(record.target or "")
                if target.state == "restoring":
                    do(target)

    def _end(self, record: SessionRecord, outcome: dict[str, Any]) -> None:
        """Stop what works for the session, note how it ended, give its memory back, and tell. May be done again.

        It is noted before the memory goes, so that no other service can take it for lost; a state folder without room does
        not keep the memory from going.
        """
        self._cancel(record)
        figures = self._table.meter(record).read(record)
        again = outcome.get(_AGAIN, [])
        outcome = {key: value for key, value in outcome.items() if key != _AGAIN}
        record = record.changed(statistics=figures["session"], uploaded=figures["uploaded"], **outcome)
        is_noted = True
        try:
            self._folder.save_session(record)
        except OSError as error:
            is_noted = False
            say("engine", f"session {record.name}: its end cannot be noted: {error}")
        self.release(record.volume_id, record.id, is_base=self._note_base(record), again=again)
        files.remove(self._folder.session_folder(record.id) / "spool")
        files.remove(self._statistics(record))
        self._volumes.end_session(record.volume_id, record.id)
        self.close(record.volume_id)
        if not is_noted and record.target is None:  # what a clone has taken of a full disk goes with it
            self._folder.save_session(record)
        if record.target is not None:
            self._clone_ended(record)
        else:
            self._table.show(record)
        self._table.drop_meter(record)
        self._kicked.pop(record.id, None)
        with contextlib.suppress(StillframeError):
            self._transfer.forget(record.id)

    def _note_base(self, record: SessionRecord) -> bool:
        """After a session's end: whether what is written from its cut on is noted against its snapshot now. One whose parent
        turned out to be damaged is followed by a full one."""
        try:
            if record.state == "committed" and record.target is None:
                base = {"repository": record.repository, "id": record.id, "created": record.created}
                return self._volumes.note_base(record.volume_id, base, record.base_number)
            if record.state == "failed" and _blames_parent(record, record.error):
                self._volumes.note_damage(record.volume_id, record.base_number)
        except (OSError, NotFound) as error:
            say("engine", f"session {record.name}: its end cannot be noted with its volume: {error}")
        return False

    def _cancel(self, record: SessionRecord) -> None:
        """End the session's sender; when this returns, it is dead."""
        with contextlib.suppress(NotFound):
            self._transfer.cancel(record.id)

    def close(self, volume_id: str) -> None:
        """Have the keeper let go of the volume, if nothing else needs it."""
        with contextlib.suppress(NotFound):
            of = self._volumes.by_id(volume_id)
            with self._volumes.locked(of.name):
                self._volumes.close(of)

    def _release_and_close(self, volume_id: str, session: str, *, is_base: bool = False) -> None:
        """For a session that nobody works for: a new one of the same name must not begin in between, so under the lock."""
        try:
            of = self._volumes.by_id(volume_id)
        except NotFound:
            self.release(volume_id, session)
            return
        with self._volumes.locked(of.name):
            self.release(volume_id, session, is_base=is_base)
            self._volumes.close(of)

    def release(
        self, volume_id: str, session: str, *, is_base: bool = False, again: Sequence[Sequence[int]] = ()
    ) -> None:
        """End the session in the volume's memory; with `is_base` its snapshot is the volume's base, as the volume's record
        says, and the next is to read the chunks `again` too. Nothing happens if that is done, or if the memory is gone."""
        self._keeper.unkeep(volume_id, sweep_key(session))
        with contextlib.suppress(NotFound):
            self._keeper.run(
                "end", [volume_id], session=session, deadline_seconds=_DRAIN_SECONDS, is_base=is_base, again=list(again)
            )
        self._keeper.drop(volume_id, [packs_role(session)])
