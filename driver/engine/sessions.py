"""Sessions of this node: begun, described, aborted. `watcher` brings them to their end. Threads of the service."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from driver.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    StillframeError,
)
from driver.core.ids import check_name, member_name, snapshot_id
from driver.core.sizes import UNIT_BYTES, chunks_of
from driver.engine.clients import KeeperClient, TransferClient
from driver.engine.jobs import Jobs
from driver.engine.records import Folder, SessionRecord, VolumeRecord
from driver.engine.settings import Settings, divide
from driver.engine.shares import Shares
from driver.engine.table import RUNNING, Table, packs_role
from driver.engine.volumes import Volumes
from driver.engine.watcher import Watcher, catalog_job
from driver.host.clock import boottime
from driver.host.freeze import frozen
from driver.host.log import say
from driver.transfer.packbuffer import memory_bytes, note_begun

_POLL_SECONDS: Final = 0.05
_PARENTS_MAX: Final = 3
_FREEZE_SECONDS: Final = 10.0
"""How long file systems are held still at most: twice what a cut may take."""


def _wanted(of: VolumeRecord, name: str, repository: str, on_full: str, group: str | None = None) -> SessionRecord:
    if on_full not in ("throttle", "fail"):
        raise InvalidArgument(f"onBufferFull {on_full!r}", "use throttle or fail")
    return SessionRecord(
        id=snapshot_id(name), name=name, repository=repository, volume_id=of.id, volume_name=of.name, lineage=of.lineage,
        size_bytes=of.size_bytes, logical_block_size=of.logical_block_size, on_buffer_full=on_full, budget_bytes=0,
        group=group, base_number=of.base_number,
    )  # fmt: skip


class Sessions:
    """All sessions, running and ended, that this node has a record of."""

    def __init__(
        self, folder: Folder, settings: Settings, volumes: Volumes, keeper: KeeperClient, transfer: TransferClient,
        jobs: Jobs,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._settings = settings
        self._volumes = volumes
        self._keeper = keeper
        self._transfer = transfer
        self._table = Table(folder, volumes, keeper)
        self._shares = Shares(settings, self._table)
        self._watcher = Watcher(folder, settings, volumes, keeper, transfer, self._table, self._shares, jobs)
        self._watcher.find_again()

    # --- what is known

    def record(self, session: str) -> SessionRecord | None:
        return self._table.record(session)

    def all(self) -> list[SessionRecord]:
        return self._table.all()

    def is_clone(self, volume_id: str) -> bool:
        """Whether a session into that volume is known."""
        return any(record.target == volume_id for record in self.all())

    def describe(self, record: SessionRecord) -> dict[str, Any]:
        """A snapshot as the command line shows it, as far as this node knows."""
        meter = self._table.known_meter(record)
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
            "node": self._settings.node,
            "group": record.group,
            "parent": record.parent["id"] if record.parent else None,
        }

    # --- begin

    def create(
        self, volume: str, name: str | None, repository: str, on_full: str, freeze: Sequence[int] = (), *,
        full: bool = False, new: bool = False,
    ) -> SessionRecord:  # fmt: skip
        """Cut the volume and start the upload; returns right after the cut. The same name gives the same snapshot, unless
        it has to be a `new` one: then the name may not be taken.

        The file systems of the descriptors `freeze` are held still over the cut. A `full` one uploads everything.

        Raises FailedPrecondition (another session of the volume runs, no budget left), AlreadyExists, NotFound, and
        what the repository answers. Nothing is left behind when it raises.
        """
        name = check_name("snapshot", name or f"{volume}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')[:-4]}Z")
        with self._volumes.locked(volume):
            of = self._volumes.record(volume)
            known = self._known(of, name, repository)
            if known is not None and new:
                raise AlreadyExists(
                    f"snapshot {name!r} exists in repository {known.repository!r}; no other one was taken",
                    "take another name",
                )
            if known is not None:
                return known
            return self._create([of], [_wanted(of, name, repository, on_full)], freeze, full=full)[0]

    def create_group(
        self, group: str, volumes: Sequence[str], repository: str, on_full: str, freeze: Sequence[int] = ()
    ) -> list[SessionRecord]:
        """Cut several volumes at one instant; otherwise as `create`. The snapshots are named `<group>-<volume's id>`."""
        check_name("group snapshot", group)
        with contextlib.ExitStack() as locks:
            for volume in sorted(set(volumes)):
                locks.enter_context(self._volumes.locked(volume))
            of = [self._volumes.record(volume) for volume in sorted(set(volumes))]
            wanted = [_wanted(v, member_name(group, v.id), repository, on_full, group) for v in of]
            known = [self._known(v, record.name, repository) for v, record in zip(of, wanted, strict=True)]
            members = {record.volume_id for record in self.all() if record.group == group}
            if members and members != {v.id for v in of}:
                raise AlreadyExists(f"group snapshot {group!r} exists, of other volumes", "take another name")
            found = [record for record in known if record is not None]
            return found if found else self._create(of, wanted, freeze)

    def create_clone(self, volume: str, target: VolumeRecord) -> SessionRecord:
        """Cut the volume and start to copy it into `target`, which is available when the session is committed."""
        with self._volumes.locked(volume):
            of = self._volumes.record(volume)
            wanted = _wanted(of, f"clone-{target.id}", "", "throttle")
            return self._create([of], [wanted.changed(target=target.id)], ())[0]

    def _known(self, of: VolumeRecord, name: str, repository: str) -> SessionRecord | None:
        """The session of that name, if it is of this volume. Raises AlreadyExists, FailedPrecondition."""
        known = self.record(snapshot_id(name))
        if known is None:
            return None
        if (known.volume_id, known.repository) != (of.id, repository):
            raise AlreadyExists(
                f"snapshot {name!r} exists, of volume {known.volume_name!r} in repository {known.repository!r}",
                "take another name",
            )
        if known.state == "preparing":
            raise FailedPrecondition(
                f"snapshot {name!r} was begun before and broken off; that is being cleaned up", "try again"
            )
        return known

    def _create(
        self, of: Sequence[VolumeRecord], wanted: Sequence[SessionRecord], freeze: Sequence[int], *, full: bool = False
    ) -> list[SessionRecord]:
        for volume in of:
            self._check_may_begin(volume)
        admitted: list[SessionRecord] = []
        began = datetime.now(UTC).isoformat()
        try:
            for volume, record in zip(of, wanted, strict=True):
                admitted.append(self._shares.admit(record))
                admitted[-1] = self._announce(admitted[-1], () if full else self._parents(volume, record))
            return self._begin(of, admitted, freeze)
        except BaseException:
            for record in admitted:
                self._undo(record)
                if record.repository:
                    with contextlib.suppress(StillframeError):
                        self._watcher.withdraw(record, since=began)
            raise

    def _announce(self, record: SessionRecord, parents: Sequence[dict[str, str]]) -> SessionRecord:
        """Write pending.json; the record with its parent, which is the first of `parents` that can be. Raises what the
        repository answers."""
        if not record.repository:
            return record
        spec = {
            "repository": record.repository, "snapshot": {"id": record.id, "name": record.name},
            "volume": {"id": record.volume_id, "name": record.volume_name}, "lineage": record.lineage,
            "node": self._settings.node, "group": record.group, "parents": list(parents),
        }  # fmt: skip
        begun = self._transfer.ask(catalog_job(record), "begin", spec)
        known = {key: begun[key] for key in ("parent", "repository_id", "conditional_put")}
        return record.changed(**known, begin_requests=begun["requests"])

    def _parents(self, of: VolumeRecord, record: SessionRecord) -> list[dict[str, str]]:
        """The snapshots in the same repository that a new one could build on, best first: the one that what was written is
        noted against, then the volume's newest."""
        base = [of.base] if of.base is not None and of.base["repository"] == record.repository else []
        others = [
            {"id": other.id, "created": other.created} for other in reversed(self.all())
            if (other.volume_id, other.repository, other.state) == (of.id, record.repository, "committed")
            and other.base_number >= of.full_from and other.id not in [known["id"] for known in base]
        ]  # fmt: skip
        return [{"id": known["id"], "created": known["created"]} for known in [*base, *others]][:_PARENTS_MAX]

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

    def _begin(
        self, of: Sequence[VolumeRecord], records: Sequence[SessionRecord], freeze: Sequence[int]
    ) -> list[SessionRecord]:
        """Prepare all, cut all at one instant, note all, start the work of all."""
        for volume, record in zip(of, records, strict=True):
            self._prepare(volume, record)
        with contextlib.ExitStack() as still:
            for fd in freeze:
                still.enter_context(frozen(f"/proc/self/fd/{fd}", _FREEZE_SECONDS))
            cut = self._keeper.run(
                "cut", [volume.id for volume in of], deadline_seconds=self._settings.cut_seconds,
                sessions={volume.id: self._limits(volume, record) for volume, record in zip(of, records, strict=True)},
            )  # fmt: skip
        created = datetime.fromtimestamp(cut["cut"], UTC).isoformat(timespec="microseconds")
        begun = []
        for record in records:
            baseline, pending = self._table.meter(record).at_cut(), cut["pending"][record.volume_id]
            begun.append(
                self._table.save(
                    record.changed(state="uploading", created=created, baseline=baseline, pending_chunks=pending)
                )
            )
        for record in begun:
            self._watcher.start(record)
        return begun

    def _prepare(self, of: VolumeRecord, record: SessionRecord) -> None:
        self._table.save(record)
        self._volumes.set_session(of.id, record.id)
        packs = os.memfd_create("stillframe-packs", os.MFD_CLOEXEC)
        try:
            os.ftruncate(packs, memory_bytes(divide(record.budget_bytes).packs))
            note_begun(packs, boottime(), record.begin_requests)
            spool = os.open(
                self._folder.session_folder(record.id) / "spool", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            os.close(spool)
            self._volumes.open(of)
            self._keeper.put(of.id, {packs_role(record.id): packs})
        finally:
            os.close(packs)

    def _limits(self, of: VolumeRecord, record: SessionRecord) -> dict[str, Any]:
        """What the `cut` helper has to know of a session."""
        parent = record.parent or {}
        is_base = of.base == {"repository": record.repository, "id": parent.get("id"), "created": parent.get("created")}
        return {
            "parent_chunks": chunks_of(parent["size_bytes"]) if is_base else 0,
            "session": record.id, "memory": divide(record.budget_bytes).preimages,
            "spill": self._settings.spill_bytes // UNIT_BYTES, "on_full": record.on_buffer_full.upper(),
        }  # fmt: skip

    def _undo(self, record: SessionRecord) -> None:
        """Forget a session that came to nothing; later, if the disk or the keeper does not allow it now."""
        try:
            self._watcher.release(record.volume_id, record.id)
        except (StillframeError, OSError) as error:
            say("engine", f"session {record.name}: {error}; trying again")
            threading.Timer(1.0, self._undo, [record]).start()
        else:
            self._table.forget(record)
            self._let_go(record.volume_id)

    def _let_go(self, volume_id: str) -> None:
        """A volume that is not attached was opened for the session alone."""
        try:
            self._watcher.close(volume_id)
        except (StillframeError, OSError) as error:
            say("engine", f"volume {volume_id} stays open until it is used again: {error}")

    def abort(self, session: str) -> None:
        """End a running session for good, and wait until it has ended. Nothing happens to one that has."""
        self._table.abort(session)
        record = self.record(session)
        while record is not None and record.state in RUNNING:
            time.sleep(_POLL_SECONDS)
            record = self.record(session)

    def forget(self, session: str) -> None:
        """Drop the record of a session that has ended."""
        record = self.record(session)
        if record is not None:
            self._table.forget(record)
