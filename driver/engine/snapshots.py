"""Snapshots as a user sees them: this node's sessions and what the repositories hold, and what can be done with both."""

from __future__ import annotations

import contextlib
from typing import Any

from driver.core.errors import FailedPrecondition, InvalidArgument, NotFound, StillframeError, Unsupported
from driver.core.ids import check_name, is_id, new_id, snapshot_id
from driver.core.sizes import format_size, volume_size
from driver.engine.clients import TransferClient
from driver.engine.jobs import Jobs
from driver.engine.records import VolumeRecord
from driver.engine.sessions import Sessions
from driver.engine.table import RUNNING
from driver.engine.volumes import Volumes
from driver.host import disks


class Snapshots:
    """`repository` arguments are names; `snapshot` arguments are names, ids, or handles `<repository>:<id>` of it. `seconds`
    is how long who asks waits for a repository, None if that does not matter: RepositoryUnavailable after that."""

    def __init__(self, sessions: Sessions, volumes: Volumes, transfer: TransferClient, jobs: Jobs) -> None:
        self._sessions = sessions
        self._volumes = volumes
        self._transfer = transfer
        self._jobs = jobs

    def _ask(self, kind: str, spec: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        return self._transfer.ask(f"{kind}-{new_id()}", kind, {**spec, "seconds": seconds})

    @staticmethod
    def _find(snapshot: str, repository: str) -> tuple[str, str]:
        """The repository and the id that a user's words mean."""
        _, _, snapshot = snapshot.rpartition(":")
        if not is_id(snapshot):
            snapshot = snapshot_id(check_name("snapshot", snapshot))
        return repository, snapshot

    def list(self, repository: str, seconds: float | None = None) -> list[dict[str, Any]]:
        """All snapshots of a repository, and this node's sessions into it."""
        found = {item["id"]: item for item in self._ask("list", {"repository": repository}, seconds)["snapshots"]}
        for record in self._sessions.all():
            if record.repository == repository and found.get(record.id, {}).get("state") != "committed":
                found[record.id] = self._sessions.describe(record)
        return sorted(found.values(), key=lambda item: (item.get("created") or "", item["name"] or ""))

    def show(self, snapshot: str, repository: str, seconds: float | None = None) -> dict[str, Any]:
        """One snapshot. Raises NotFound."""
        where, found = self._find(snapshot, repository)
        record = self._sessions.record(found)
        local = self._sessions.describe(record) if record is not None and record.repository == where else None
        if local is not None and local["state"] != "committed":
            return local
        try:
            remote = self._ask("show", {"repository": where, "snapshot": found}, seconds)
        except NotFound:
            raise NotFound(
                f"there is no snapshot {snapshot!r} in repository {where!r}", "see: stillframe snapshot list"
            ) from None
        return {**remote, **{key: local[key] for key in ("session",) if local is not None}}

    def verify(self, snapshot: str, repository: str) -> str:
        """Start to read and check every byte of a snapshot; the job."""
        where, found = self._committed(snapshot, repository)
        return self._jobs.start("verify", {"repository": where, "snapshot": found["id"]})

    def of_repository(self, kind: str, repository: str, **more: Any) -> str:
        """Start a job on a repository as a whole: gc, audit or stats. The job."""
        return self._jobs.start(kind, {"repository": repository, **more})

    def _committed(self, snapshot: str, repository: str, seconds: float | None = None) -> tuple[str, dict[str, Any]]:
        found = self.show(snapshot, repository, seconds)
        if found["state"] == "deleted":
            raise NotFound(f"snapshot {snapshot!r} was deleted", "see: stillframe snapshot list")
        if found["state"] != "committed":
            raise FailedPrecondition(
                f"snapshot {snapshot!r} is {found['state']}, not committed", "see: stillframe snapshot show"
            )
        return found["handle"].rpartition(":")[0] or repository, found

    def restore(
        self, snapshot: str, repository: str, volume: str, size_bytes: int | None, provisioning: str | None,
        processes: int = 0, seconds: float | None = None,
    ) -> tuple[str, VolumeRecord]:  # fmt: skip
        """Start to make a new volume of a snapshot; the job, and the volume, which is `restoring` until it has ended.

        Raises InvalidArgument for a size below the snapshot's, AlreadyExists, OutOfSpace, NotFound.
        """
        where, found = self._committed(snapshot, repository, seconds)
        size_bytes = volume_size(size_bytes or found["size_bytes"])
        if size_bytes < found["size_bytes"]:
            raise InvalidArgument(
                f"snapshot {snapshot!r} has {format_size(found['size_bytes'])}, more than {format_size(size_bytes)}",
                f"ask for at least {found['size_bytes']} bytes",
            )
        job = new_id()
        source = {
            "lineage": found["lineage"], "state": "restoring", "source_snapshot": found["handle"], "restore_job": job,
            "formatted": True, "base": {"repository": where, "id": found["id"], "created": found["created"]},
        }  # fmt: skip
        record = self._volumes.create(
            volume, size_bytes, provisioning or "thick", found["logical_block_size"], processes, **source
        )
        try:
            backing = disks.open_direct(self._volumes.disk(record), record.logical_block_size)
            spec = {"repository": where, "snapshot": found["id"]}
            self._jobs.start("restore", spec, [backing], lambda error: self._restored(volume, error), job)
        except BaseException:
            self._volumes.forget(record)
            raise
        return job, record

    def clone(
        self, source: str, name: str, size_bytes: int | None, provisioning: str | None, processes: int = 0
    ) -> VolumeRecord:
        """Start to make a new volume of what another one is now; it is `restoring` until that is done, or gone if it fails:
        its `restore_job` says why.

        Two thin ones share their blocks where the file system can: then it is done at once.

        Raises InvalidArgument for a size below the source's, AlreadyExists, OutOfSpace, NotFound, FailedPrecondition.
        """
        of = self._volumes.record(source)
        size_bytes = volume_size(size_bytes or of.size_bytes)
        if size_bytes < of.size_bytes:
            raise InvalidArgument(
                f"volume {source!r} has {format_size(of.size_bytes)}, more than {format_size(size_bytes)}",
                f"ask for at least {of.size_bytes} bytes",
            )
        target = self._volumes.create(
            name, size_bytes, provisioning or of.provisioning, of.logical_block_size, processes, lineage=of.lineage,
            state="restoring", source_volume=of.id, restore_job=new_id(), formatted=True, base=of.base,
        )  # fmt: skip
        try:
            if self._volumes.share(source, target):
                return self._volumes.save(target.changed(state="available", restore_job=None))
            self._sessions.create_clone(source, target)
        except BaseException:
            self._volumes.forget(target)
            raise
        return target

    def _restored(self, volume: str, error: StillframeError | None) -> None:
        """After a restore: the volume is available, or gone."""
        with self._volumes.locked(volume), contextlib.suppress(NotFound):
            record = self._volumes.record(volume)
            if error is None:
                self._volumes.note_restored(record)
            else:
                self._volumes.forget(record)

    def resume_restores(self) -> None:
        """After a restart of this service: follow the restores that still run; what others had made is removed."""
        for name in [record.name for record in self._volumes.all() if record.state == "restoring"]:
            with self._volumes.locked(name), contextlib.suppress(NotFound):
                self._resume(self._volumes.record(name))

    def _resume(self, record: VolumeRecord) -> None:
        """Under the volume's lock: a clone that ends at this moment is available before its session is forgotten."""
        if record.state != "restoring" or (record.source_volume and self._sessions.is_clone(record.id)):
            return
        try:
            self._transfer.status(record.restore_job or "")
        except StillframeError:
            self._volumes.forget(record)
        else:
            self._jobs.follow(record.restore_job or "", lambda error: self._restored(record.name, error))

    def delete(self, snapshot: str, repository: str, seconds: float | None = None) -> None:
        """Delete a snapshot; one in the making is ended first, for good. Raises NotFound."""
        where, found = self._find(snapshot, repository)
        record = self._sessions.record(found)
        if record is not None and record.repository == where:
            if record.state in RUNNING:
                self._check_abortable(where, seconds)
                self._sessions.abort(found)
            with contextlib.suppress(NotFound):
                self._ask("delete", {"repository": where, "snapshot": found, "only_writer": True}, seconds)
            self._sessions.forget(found)
            return
        self._ask("delete", {"repository": where, "snapshot": found}, seconds)

    def _check_abortable(self, repository: str, seconds: float | None) -> None:
        """Raises Unsupported where a commit on its way could not be told from one that came too late."""
        if not self._ask("check", {"repository": repository}, seconds)["conditional_put"]:
            raise Unsupported(
                f"repository {repository!r} ignores conditional PUTs: a snapshot in the making cannot be deleted there",
                "wait until it has ended, then delete it",
            )
