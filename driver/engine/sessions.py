"""Sessions of this node: begun, watched to their commit or failure, ended. One thread a running session watches it.

What a session is made of survives this service: memory and sweeper with the keeper, the sender with the transfer
supervisor, the record on disk. A new service finds them again by the record.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from driver.core.errors import (
    AlreadyExists,
    EngineUnavailable,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RepositoryUnavailable,
    SnapshotFailed,
    StillframeError,
)
from driver.core.ids import check_name, snapshot_id
from driver.core.sizes import UNIT_BYTES, format_size
from driver.engine.clients import KeeperClient, TransferClient
from driver.engine.meter import Meter, failure_of
from driver.engine.records import Folder, SessionRecord, VolumeRecord
from driver.engine.settings import SESSION_BYTES_MIN, Settings, divide
from driver.engine.volumes import Volumes
from driver.host import files
from driver.transfer.packbuffer import memory_bytes
from driver.volume.layout import running_session

_DRAIN_SECONDS: Final = 0.5
"""Writes wait while the end of a session waits for one in hand: not long, and again later."""
_AGAIN_SECONDS_MAX: Final = 30.0
_POLL_SECONDS: Final = 0.05
RUNNING: Final = ("preparing", "uploading")
"""States of a session that has not ended."""

_DELETED: Final = SnapshotFailed("it was deleted while it was being made")


def _sweep(session: str) -> str:
    """The key of a session's sweeper with the keeper."""
    return f"sweep-{session}"


def _packs(session: str) -> str:
    """The role of a session's pack buffers with the keeper."""
    return f"packs-{session}"


def _of_packs(role: str) -> str | None:
    return role.removeprefix("packs-") if role.startswith("packs-") else None


def _lost(more: str = "") -> dict[str, str]:
    text = "the engine was stopped, or lost its power, before the snapshot was complete"
    return SnapshotFailed(text + more, "take it again, by another name").to_message()


class Sessions:
    """All sessions, running and ended, that this node has a record of."""

    def __init__(
        self, folder: Folder, settings: Settings, volumes: Volumes, keeper: KeeperClient, transfer: TransferClient
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._volumes = volumes
        self._keeper = keeper
        self._transfer = transfer
        self._table = threading.Lock()  # guards the two below
        self._records = {record.id: record for record in folder.sessions()}
        self._meters: dict[str, Meter] = {}
        self._admission = threading.Lock()  # guards the sum of all budgets
        self._aborted: set[str] = set()
        self._find_again()

    # --- what is known

    def record(self, session: str) -> SessionRecord | None:
        with self._table:
            return self._records.get(session)

    def all(self) -> list[SessionRecord]:
        with self._table:
            return sorted(self._records.values(), key=lambda record: (record.created, record.name))

    def describe(self, record: SessionRecord) -> dict[str, Any]:
        """A snapshot as the command line shows it, as far as this node knows."""
        with self._table:
            meter = self._meters.get(record.id)
        live = meter.read(record) if meter is not None and record.state in RUNNING else {}
        uploaded = record.uploaded or live.get("uploaded") or {}
        return {
            "id": record.id,
            "name": record.name,
            "handle": f"{record.repository}:{record.id}",
            "repository": record.repository,
            "volume": {"id": record.volume_id, "name": record.volume_name},
            "lineage": record.lineage,
            "state": "uploading" if record.state == "preparing" else record.state,
            "created": record.created,
            "size_bytes": record.size_bytes,
            "logical_block_size": record.logical_block_size,
            "uploaded_bytes": uploaded.get("uploaded_bytes", 0),
            "requests": uploaded.get("requests", 0),
            "stored_bytes": uploaded.get("stored_bytes", 0),
            "error": record.error,
            "progress": live.get("progress"),
            "session": live.get("session") or record.statistics,
        }

    # --- begin

    def create(self, volume: str, name: str | None, repository: str, on_full: str) -> SessionRecord:
        """Cut the volume and start the upload; returns right after the cut. The same name gives the same snapshot.

        Raises FailedPrecondition (another session of the volume runs, no budget left), AlreadyExists, NotFound, and
        what the repository answers. Nothing is left behind when it raises.
        """
        if on_full not in ("throttle", "fail"):
            raise InvalidArgument(f"onBufferFull {on_full!r}", "use throttle or fail")
        name = check_name("snapshot", name or f"{volume}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')[:-4]}Z")
        with self._volumes.locked(volume):
            of = self._volumes.record(volume)
            known = self.record(snapshot_id(name))
            if known is not None:
                if (known.volume_id, known.repository) == (of.id, repository):
                    if known.state == "preparing":
                        raise FailedPrecondition(
                            f"snapshot {name!r} was begun before and broken off; that is being cleaned up", "try again"
                        )
                    return known
                raise AlreadyExists(
                    f"snapshot {name!r} exists, of volume {known.volume_name!r} in repository {known.repository!r}",
                    "take another name",
                )
            self._check_may_begin(of)
            record = self._admit(SessionRecord(
                id=snapshot_id(name), name=name, repository=repository, volume_id=of.id, volume_name=of.name,
                lineage=of.lineage, size_bytes=of.size_bytes, logical_block_size=of.logical_block_size,
                on_buffer_full=on_full, budget_bytes=0,
            ))  # fmt: skip
            try:
                self._transfer.ask(
                    f"begin-{record.id}", "begin",
                    {
                        "repository": repository, "snapshot": {"id": record.id, "name": name},
                        "volume": {"id": of.id, "name": of.name}, "lineage": of.lineage, "node": os.uname().nodename,
                    },
                )  # fmt: skip
            except BaseException:
                self._forget(record)
                raise
            try:
                return self._begin(of, record)
            except BaseException:
                with contextlib.suppress(StillframeError):
                    spec = {"repository": repository, "snapshot": record.id}
                    self._transfer.ask(f"withdraw-{record.id}", "withdraw", spec)
                raise

    def _admit(self, record: SessionRecord) -> SessionRecord:
        """Give the session its part of the node's cap, and its place in the table.

        Raises FailedPrecondition, or AlreadyExists if a snapshot of another volume took the name at the same moment.
        """
        with self._admission:
            record = record.changed(budget_bytes=self._budget())
            with self._table:
                if record.id in self._records:
                    raise AlreadyExists(f"snapshot {record.name!r} is being made of another volume", "take another name")
                self._records[record.id] = record
        return record

    def _check_may_begin(self, of: VolumeRecord) -> None:
        running = self._volumes.session_of(of.id)
        if running is not None:
            other = self.record(running)
            raise FailedPrecondition(
                f"another snapshot of volume {of.name!r} is being made: {other.name if other else running}",
                "wait for its end, or delete it",
            )
        if of.state != "available":
            raise FailedPrecondition(f"volume {of.name!r} is being restored", "wait until it is available")

    def _budget(self) -> int:
        """Bytes for one more session under the node's cap. Raises FailedPrecondition."""
        taken = sum(record.budget_bytes for record in self.all() if record.state in RUNNING)
        left = self._settings.node_bytes - taken
        if left < SESSION_BYTES_MIN:
            raise FailedPrecondition(
                f"running snapshots use {format_size(taken)} of the {format_size(self._settings.node_bytes)} "
                "that sessions may use on this node",
                "wait until one has ended, or raise --node-memory",
            )
        return min(left, self._settings.session_bytes)

    def _begin(self, of: VolumeRecord, record: SessionRecord) -> SessionRecord:
        folder = self._folder.session_folder(record.id)
        budget = divide(record.budget_bytes)
        self._save(record)
        self._volumes.set_session(of.id, record.id)
        packs = os.memfd_create("stillframe-packs", os.MFD_CLOEXEC)
        try:
            os.ftruncate(packs, memory_bytes(budget.packs))
            spool = os.open(folder / "spool", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.close(spool)
            self._volumes.open(of)
            self._keeper.put(of.id, {_packs(record.id): packs})
            meter = self._meter(record)
            cut = self._keeper.run(
                "cut", [of.id], sessions={of.id: record.id}, memory=budget.preimages,
                spill=self._settings.spill_bytes // UNIT_BYTES, on_full=record.on_buffer_full.upper(),
                deadline_seconds=self._settings.cut_seconds,
            )["cut"]  # fmt: skip
            created = datetime.fromtimestamp(cut, UTC).isoformat(timespec="microseconds")
            record = self._save(
                record.changed(state="uploading", created=created, baseline=meter.at_cut())
            )
        except BaseException:
            self._undo(record)
            raise
        finally:
            os.close(packs)
        self._start_work(record)
        return record

    def _undo(self, record: SessionRecord) -> None:
        """Forget a session that came to nothing; later, if the disk or the keeper does not allow it now."""
        try:
            self._release(record.volume_id, record.id)
        except (StillframeError, OSError) as error:
            print(f"session {record.name}: {error}; trying again", flush=True)
            threading.Timer(1.0, self._undo, [record]).start()
        else:
            self._forget(record)

    def _start_work(self, record: SessionRecord) -> None:
        argument = {
            "session": record.id, "packs": _packs(record.id), "bytes_per_second": self._settings.upload_rate,
        }  # fmt: skip
        self._keeper.keep(record.volume_id, _sweep(record.id), "sweep", argument)
        self._thread(self._watch, record)

    @staticmethod
    def _thread(main: Callable[[str], None], record: SessionRecord) -> None:
        threading.Thread(target=main, args=[record.id], name=f"session-{record.name}", daemon=True).start()

    # --- after a restart of this service

    def _find_again(self) -> None:
        """Go on with the sessions whose memory the keeper still holds; settle those that have lost it."""
        alive: set[str] = set()
        for volume, held in self._keeper.list()["volumes"].items():
            running = self._session_in_memory(volume)
            roles = {session for session in map(_of_packs, held["roles"]) if session is not None}
            for session in roles if running is None else {*roles, running}:
                record = self.record(session)
                if record is not None and record.state == "uploading" and session == running and session in roles:
                    alive.add(session)
                    self._volumes.set_session(volume, session)
                    self._start_work(record)
                elif record is None or record.state not in RUNNING:
                    threading.Thread(target=self._release_for_good, args=[volume, session], daemon=True).start()
        for record in self.all():
            if record.state in RUNNING and record.id not in alive:
                self._thread(self._settle, record)

    def _session_in_memory(self, volume: str) -> str | None:
        (memory,) = self._keeper.take(volume, ["memory"])
        try:
            return running_session(memory)
        finally:
            os.close(memory)

    def _release_for_good(self, volume_id: str, session: str) -> None:
        """Give back the memory of a session that ended just before this service was started. The whole of a thread."""
        wait = 0.1
        while True:
            try:
                self._release(volume_id, session)
                self._close(volume_id)
                return
            except (StillframeError, OSError) as error:
                print(f"session {session}: {error}; trying again", flush=True)
                time.sleep(wait)
                wait = min(2 * wait, _AGAIN_SECONDS_MAX)

    def _settle(self, session: str) -> None:
        """Find out what became of a session that has lost its memory: its manifest decides. The whole of a thread."""
        wait = 0.1
        while True:
            record = self.record(session)
            if record is None or record.state not in RUNNING:
                return
            try:
                self._cancel(record)
                self._release(record.volume_id, record.id)
                self._close(record.volume_id)
                self._settled(record)
                return
            except (RepositoryUnavailable, EngineUnavailable, FailedPrecondition, OSError) as error:
                if record.id in self._aborted:
                    self._save(record.changed(state="aborted", error=_DELETED.to_message()))
                    return
                print(f"session {record.name}: {error}; trying again", flush=True)
                time.sleep(wait)
                wait = min(2 * wait, _AGAIN_SECONDS_MAX)
            except StillframeError as error:
                self._save(record.changed(state="failed", error=_lost(f"; asked for it, its repository says: {error}")))
                return

    def _settled(self, record: SessionRecord) -> None:
        try:
            found = self._transfer.ask(
                f"settle-{record.id}", "show", {"repository": record.repository, "snapshot": record.id}
            )
        except NotFound:
            found = {}
        of = found.get("volume") or {}
        if found.get("state") == "committed" and (of.get("id"), found["created"]) == (record.volume_id, record.created):
            figures = {key: found[key] for key in ("uploaded_bytes", "requests", "stored_bytes")}
            self._save(record.changed(state="committed", statistics=found["session"], uploaded=figures))
            return
        self._transfer.ask(
            f"withdraw-{record.id}", "withdraw", {"repository": record.repository, "snapshot": record.id}
        )
        if record.state == "preparing":
            self._forget(record)  # nobody was told of it
        else:
            self._save(record.changed(state="failed", error=_lost()))

    # --- watch and end

    def _watch(self, session: str) -> None:
        """Until the session has ended. The outermost loop of its thread."""
        outcome = None
        while True:
            record = self.record(session)
            if record is None or record.state not in RUNNING:
                return
            try:
                outcome = outcome or self._look(record)
                if outcome is not None:
                    self._end(record, outcome)
            except (StillframeError, OSError) as error:
                print(f"session {record.name}: {error}; trying again", flush=True)
                time.sleep(1.0)

    def _look(self, record: SessionRecord) -> dict[str, Any] | None:
        """The record's changes if the session has come to its end."""
        if record.id in self._aborted:
            return {"state": "aborted", "error": _DELETED.to_message()}
        meter = self._meter(record)
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
            self._note_statistics(record, meter)
            return self._look_at_sweeper(record, meter)
        if status["state"] == "done":
            return {"state": "committed"}
        return {"state": "failed", "error": status["error"]}

    def _note_statistics(self, record: SessionRecord, meter: Meter) -> None:
        """Once the sweep is done, leave the session's figures to the sender, which puts them into the manifest."""
        path = self._statistics(record)
        if meter.swept() and not path.exists():
            files.write_json(path, meter.read(record)["session"])

    def _statistics(self, record: SessionRecord) -> Path:
        return self._folder.session_folder(record.id) / "statistics.json"

    def _look_at_sweeper(self, record: SessionRecord, meter: Meter) -> dict[str, Any] | None:
        process = self._keeper.show(record.volume_id, _sweep(record.id))
        if process is not None and not process["finished"]:
            return None
        if meter.swept() or failure_of(meter.shared, record) is not None:
            return None
        error = SnapshotFailed("its sweeper died again and again", "the engine's log says of what")
        return {"state": "failed", "error": error.to_message()}

    def _start_sender(self, record: SessionRecord) -> None:
        (packs,) = self._keeper.take(record.volume_id, [_packs(record.id)])
        folder = self._folder.session_folder(record.id)
        spool = os.open(folder / "spool", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._transfer.start(
                record.id, "send",
                {
                    "repository": record.repository,
                    "snapshot": {"id": record.id, "name": record.name, "created": record.created},
                    "volume": {
                        "id": record.volume_id, "name": record.volume_name, "size_bytes": record.size_bytes,
                        "logical_block_size": record.logical_block_size,
                    },
                    "lineage": record.lineage, "node": os.uname().nodename,
                    "upload_rate_bytes": self._settings.upload_rate,
                    "statistics_path": str(self._statistics(record)),
                },
                [packs, spool],
            )  # fmt: skip
        finally:
            os.close(packs)
            os.close(spool)

    def _end(self, record: SessionRecord, outcome: dict[str, Any]) -> None:
        """Stop what works for the session, note how it ended, give its memory back, and tell. May be done again.

        It is noted before the memory goes, so that no other service can take it for lost; a state folder without room does
        not keep the memory from going.
        """
        self._cancel(record)
        figures = self._meter(record).read(record)
        record = record.changed(statistics=figures["session"], uploaded=figures["uploaded"], **outcome)
        is_noted = True
        try:
            self._folder.save_session(record)
        except OSError as error:
            is_noted = False
            print(f"session {record.name}: its end cannot be noted: {error}", flush=True)
        self._release(record.volume_id, record.id)
        files.remove(self._folder.session_folder(record.id) / "spool")
        files.remove(self._statistics(record))
        self._volumes.end_session(record.volume_id, record.id)
        self._close(record.volume_id)
        if not is_noted:
            self._folder.save_session(record)
        with self._table:
            self._records[record.id] = record
        self._drop_meter(record)
        with contextlib.suppress(StillframeError):
            self._transfer.forget(record.id)

    def _cancel(self, record: SessionRecord) -> None:
        """End the session's sender; when this returns, it is dead."""
        with contextlib.suppress(NotFound):
            self._transfer.cancel(record.id)

    def _close(self, volume_id: str) -> None:
        of = next((v for v in self._volumes.all() if v.id == volume_id), None)
        if of is not None:
            with self._volumes.locked(of.name):
                self._volumes.close(of)

    def _release(self, volume_id: str, session: str) -> None:
        """End the session in the volume's memory. Nothing happens if that is done, or if the memory is gone."""
        self._keeper.unkeep(volume_id, _sweep(session))
        with contextlib.suppress(NotFound):
            self._keeper.run("end", [volume_id], session=session, deadline_seconds=_DRAIN_SECONDS)
        self._keeper.drop(volume_id, [_packs(session)])

    def abort(self, session: str) -> None:
        """End a running session for good, and wait until it has ended. Nothing happens to one that has."""
        with self._table:
            self._aborted.add(session)
        self.wait(session, lambda record: record.state not in RUNNING)

    def wait(self, session: str, until: Callable[[SessionRecord], bool]) -> None:
        """Until the record is gone or as wanted."""
        record = self.record(session)
        while record is not None and not until(record):
            time.sleep(_POLL_SECONDS)
            record = self.record(session)

    def forget(self, session: str) -> None:
        """Drop the record of a session that has ended."""
        record = self.record(session)
        if record is not None:
            self._forget(record)

    # --- records and meters

    def _save(self, record: SessionRecord) -> SessionRecord:
        self._folder.save_session(record)
        with self._table:
            self._records[record.id] = record
        return record

    def _forget(self, record: SessionRecord) -> None:
        self._drop_meter(record)
        self._volumes.end_session(record.volume_id, record.id)
        with self._table:
            self._records.pop(record.id, None)
        self._folder.remove_session(record.id)

    def _meter(self, record: SessionRecord) -> Meter:
        with self._table:
            meter = self._meters.get(record.id)
        if meter is None:
            memory, packs = self._keeper.take(record.volume_id, ["memory", _packs(record.id)])
            meter = Meter(memory, packs)
            with self._table:
                self._meters[record.id] = meter
        return meter

    def _drop_meter(self, record: SessionRecord) -> None:
        with self._table:
            meter = self._meters.pop(record.id, None)
        if meter is not None:
            meter.close()
