"""What a repository says of its snapshots, and the small changes to that: begin, list, show, delete. Any thread.

Functions of an open store. `Summary` is a snapshot as a user sees it, as far as the repository knows.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from driver.core.errors import (
    AccessDenied,
    AlreadyExists,
    DataCorrupt,
    NotFound,
    RepositoryMissing,
    SnapshotFailed,
    StillframeError,
    Unsupported,
)
from driver.core.ids import new_id
from driver.store import layout
from driver.store.port import Listed, ObjectStore
from driver.transfer import records
from driver.transfer.records import Aborted, Manifest, Pending, Tombstone
from driver.transfer.remembered import Remembered, Summary
from driver.transfer.specs import Ancestor

STALE_SECONDS: Final = 300.0
"""A session whose pending.json is older than this, by the store's clock, is taken for dead by readers."""
SILENCE_SECONDS: Final = 12 * 3600.0
"""Half the margin of garbage collection: a session that could not renew pending.json for so long must not commit, and a name
is not taken over from one: its records may be about to be removed, pending.json last."""
_READERS: Final = 4
_ALONE: Final = nullcontext()  # in a process without other threads
_REASON_MAX: Final = 256
_NO_CONDITIONS: Final = (
    "this store ignores conditional PUTs (If-None-Match): a snapshot in the making cannot be deleted safely, and there "
    "is no garbage collection; use a store that honours them, or let only one engine write to this repository"
)


def now() -> str:
    """This host's time as records hold it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def open_repository(
    store: ObjectStore, opening: AbstractContextManager[Any] = _ALONE, *, was_used: bool = False
) -> str:
    """The repository's id. A new prefix becomes a repository; but not if it `was_used`: then RepositoryMissing. Raises
    Unsupported for one of another format.

    That is done with `opening` held, a process's lock for the place: a store that ignores conditional PUTs takes two.
    """
    found = check_repository(store)
    if found is not None:
        return found
    if was_used:
        raise RepositoryMissing(
            f"{store.where} has no {layout.REPOSITORY}, and earlier snapshots of the volume are said to be there",
            "mount what should be there; give another place another name; to begin there anew: "
            "stillframe snapshot create --full",
        )
    with opening:
        fresh = records.Repository(id=new_id(), created=now())
        found = check_repository(store)
        if found is not None or store.put_if_absent(layout.REPOSITORY, records.encode(fresh)):
            return found or fresh.id
    data = store.get(layout.REPOSITORY, records.SMALL_BYTES_MAX) or b""
    return records.decode(data, records.Repository, layout.REPOSITORY).id


def check_repository(store: ObjectStore) -> str | None:
    """The id of the repository that the prefix is; None if it is none. Raises Unsupported for one of another format."""
    data = store.get(layout.REPOSITORY, records.SMALL_BYTES_MAX)
    return None if data is None else records.decode(data, records.Repository, layout.REPOSITORY).id


def check_same(store: ObjectStore, repository_id: str) -> None:
    """Raises RepositoryMissing if the prefix is not that repository: its name stands for another place than it did."""
    if check_repository(store) != repository_id:
        raise RepositoryMissing(
            f"{store.where} is not the repository that the snapshot was begun in",
            "mount what should be there, or correct the repository's url",
        )


def read_manifest(store: ObjectStore, snapshot: str) -> Manifest | Aborted | None:
    """The snapshot's manifest.json, if there is one. Raises DataCorrupt, Unsupported."""
    key = layout.manifest(snapshot)
    data = store.get(key, records.MANIFEST_BYTES_MAX)
    return None if data is None else records.decode_manifest(data, key)


def committed(store: ObjectStore, snapshot: str) -> Manifest:
    """The manifest of a snapshot that can be read. Raises NotFound, SnapshotFailed, DataCorrupt, Unsupported."""
    check_repository(store)
    stone = store.head(layout.tombstone(snapshot))  # first: garbage collection removes the manifest first, this last
    manifest = read_manifest(store, snapshot)
    if manifest is None:
        raise NotFound(f"there is no complete snapshot {snapshot} in {store.where}", "see: stillframe snapshot list")
    if isinstance(manifest, Aborted):
        raise SnapshotFailed(f"snapshot {snapshot} was ended before it was complete: {manifest.reason}")
    if stone is not None:
        raise NotFound(f"snapshot {manifest.snapshot.name!r} was deleted", "see: stillframe snapshot list")
    return manifest


@dataclass(frozen=True, slots=True)
class Beginning:
    """Who begins a snapshot of what, where."""

    snapshot: records.Named
    volume: records.Named
    lineage: str
    node: str
    group: str | None = None
    parent: str | None = None


def begin(
    store: ObjectStore, of: Beginning, parents: Sequence[Ancestor], result: dict[str, Any], repository: str, *,
    conditions: bool,
) -> Manifest | None:  # fmt: skip
    """Write pending.json, if the snapshot's name is free. The first of `parents` that a session can build on; pending.json
    names it. Raises AlreadyExists; then `result` gets `manifest`, the snapshot's summary, if that name was committed from
    the same volume."""
    first = replace(of, parent=parents[0].id if parents else None)
    if conditions and store.put_if_absent(layout.pending(of.snapshot.id), _pending(first, now())):
        _check_deleted(store, of)
    else:
        _take_name(store, first, result, repository)
    for ancestor in parents:
        if ancestor.id != first.parent:
            write_pending(store, replace(of, parent=ancestor.id), now())
        stone = store.head(layout.tombstone(ancestor.id))  # before the manifest: see `committed`
        with contextlib.suppress(DataCorrupt, Unsupported, NotFound, AccessDenied):  # perhaps in an archive: do without
            found = parent(store, ancestor, of.lineage)
            if stone is None:
                return found
    if parents:
        write_pending(store, of, now())
    return None


def parent(store: ObjectStore, of: Ancestor, lineage: str, seen: str | None = None) -> Manifest:
    """The manifest of a snapshot that a session of that lineage builds on; its pending.json names it. `seen` is that
    manifest.json, read since then. Raises NotFound, DataCorrupt, Unsupported."""
    key = layout.manifest(of.id)
    found = read_manifest(store, of.id) if seen is None else records.decode_manifest(seen.encode(), key)
    if not isinstance(found, Manifest) or (found.lineage, found.created) != (lineage, of.created):
        raise NotFound(
            f"the snapshot to build on, {of.id} of {of.created}, is not in {store.where}",
            "it was removed there, or the repository's name stands for another place now; take the snapshot again",
        )
    return found


def _take_name(store: ObjectStore, of: Beginning, result: dict[str, Any], repository: str) -> None:
    """Write pending.json where one may be already: it is the first of a snapshot's records to come and the last to go."""
    manifest = read_manifest(store, of.snapshot.id)
    if isinstance(manifest, Manifest):
        if manifest.volume.id == of.volume.id:
            result["manifest"] = _of_manifest(manifest, repository)
        raise AlreadyExists(
            f"snapshot {of.snapshot.name!r} exists in {store.where}, of volume {manifest.volume.name!r}",
            "take another name; that of a deleted snapshot is free again after garbage collection",
        )
    if manifest is not None:
        raise AlreadyExists(
            f"snapshot {of.snapshot.name!r} in {store.where} was ended before it was complete: {manifest.reason}",
            "take another name; this one is free again after garbage collection",
        )
    _check_deleted(store, of)
    pending = _read_pending(store, of.snapshot.id)
    if pending is not None and pending.volume.id != of.volume.id:
        raise AlreadyExists(
            f"snapshot {of.snapshot.name!r} is being made in {store.where}, of volume {pending.volume.name!r} "
            f"on node {pending.node!r}",
            "take another name, or delete that one",
        )
    if pending is not None and _seconds_since(pending.heartbeat) > SILENCE_SECONDS:
        raise AlreadyExists(
            f"snapshot {of.snapshot.name!r} in {store.where} was begun before, and not heard of since {pending.heartbeat}",
            "take another name; garbage collection is about to free this one, or delete that snapshot",
        )
    write_pending(store, of, now())


def _check_deleted(store: ObjectStore, of: Beginning) -> None:
    """Raises AlreadyExists for a name with a tombstone: a deletion may leave one behind that came too late."""
    if store.head(layout.tombstone(of.snapshot.id)) is not None:
        raise AlreadyExists(
            f"snapshot {of.snapshot.name!r} in {store.where} was deleted, and is being collected",
            "take another name; this one is free again in a moment",
        )


def _seconds_since(at: str) -> float:
    return (datetime.fromisoformat(now()) - datetime.fromisoformat(at)).total_seconds()


def write_pending(store: ObjectStore, of: Beginning, begun: str) -> None:
    """Make or renew pending.json: the session's heartbeat."""
    store.put(layout.pending(of.snapshot.id), [_pending(of, begun)])


def _pending(of: Beginning, begun: str) -> bytes:
    pending = Pending(
        snapshot=of.snapshot, volume=of.volume, lineage=of.lineage, parent=of.parent, node=of.node, group=of.group,
        begun=begun, heartbeat=now(),
    )  # fmt: skip
    return records.encode(pending)


def withdraw(store: ObjectStore, snapshot: str, volume: str, node: str, since: str | None = None) -> None:
    """Undo `begin`, where there was no sender yet, whose last request may come after its death: the name is free again.
    Nothing happens to a snapshot that has a manifest, is made elsewhere, or was begun before `since` by the node's clock."""
    if store.head(layout.manifest(snapshot)) is None:
        pending = _read_pending(store, snapshot)
        if pending is None or (pending.volume.id, pending.node) != (volume, node):
            return
        if since is None or datetime.fromisoformat(pending.begun) >= datetime.fromisoformat(since):
            store.delete(layout.pending(snapshot))


def _read_pending(store: ObjectStore, snapshot: str) -> Pending | None:
    key = layout.pending(snapshot)
    data = store.get(key, records.SMALL_BYTES_MAX)
    return None if data is None else records.decode(data, Pending, key)


@dataclass(slots=True)
class _Objects:
    """What a listing shows of one snapshot."""

    now: float
    found: dict[str, Listed] = field(default_factory=dict)


def list_snapshots(store: ObjectStore, repository: str, remembered: Remembered | None = None) -> list[Summary]:
    """All snapshots but deleted ones, oldest first. One that cannot be read is listed as failed, with the reason. Those that
    are `remembered` are not read again."""
    remembered = remembered or Remembered()
    if not check_repository(store):
        return []
    listing = store.list(layout.SNAPSHOTS)
    snapshots: dict[str, _Objects] = {}
    for item in listing.objects:
        named = layout.snapshot_of(item.key)
        if named is not None:
            snapshots.setdefault(named[0], _Objects(listing.now)).found[named[1]] = item
    remembered.keep_only([objects.found["manifest"] for objects in snapshots.values() if "manifest" in objects.found])
    wanted = [(name, objects) for name, objects in snapshots.items() if "deleted" not in objects.found]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda item: _listed(store, repository, item[0], item[1], remembered), wanted)
        summaries = [summary for summary in found if summary is not None]
    return sorted(summaries, key=lambda summary: (summary["created"] or "", summary["id"]))


def _listed(
    store: ObjectStore, repository: str, snapshot: str, objects: _Objects, remembered: Remembered
) -> Summary | None:
    try:
        return _summary(store, repository, snapshot, objects, remembered)
    except (DataCorrupt, Unsupported) as error:
        return _bare(snapshot, repository, "failed", error=error)


def show(store: ObjectStore, repository: str, snapshot: str, remembered: Remembered | None = None) -> Summary:
    """One snapshot; `deleted` is a state here. Raises NotFound, DataCorrupt, Unsupported."""
    listing = store.list(f"{layout.SNAPSHOTS}{snapshot}/")
    objects = _Objects(listing.now)
    for item in listing.objects:
        named = layout.snapshot_of(item.key)
        if named is not None:
            objects.found[named[1]] = item
    remembered = remembered or Remembered()
    if remembered.get(objects.found.get("manifest")) is None:
        check_repository(store)
    summary = _summary(store, repository, snapshot, objects, remembered)
    if summary is None:
        raise NotFound(f"there is no snapshot {snapshot} in {store.where}", "see: stillframe snapshot list")
    return {**summary, "state": "deleted"} if "deleted" in objects.found else summary


def _summary(
    store: ObjectStore, repository: str, snapshot: str, objects: _Objects, remembered: Remembered
) -> Summary | None:
    """None if it is neither committed nor aborted nor pending."""
    listed = objects.found.get("manifest")
    known = remembered.get(listed)
    if known is not None:
        return known
    manifest = read_manifest(store, snapshot) if listed is not None else None
    if isinstance(manifest, Manifest):
        summary = _of_manifest(manifest, repository)
        if listed is not None:
            remembered.add(listed, summary)
        return summary
    pending = _read_pending(store, snapshot) if "pending" in objects.found else None
    if manifest is not None:
        error = SnapshotFailed(f"it was ended before it was complete: {manifest.reason}")
        return _of_pending(pending, snapshot, repository, "aborted", error)
    if pending is None:
        return None
    quiet = objects.now - objects.found["pending"].modified
    if quiet <= STALE_SECONDS:
        return _of_pending(pending, snapshot, repository, "uploading", None)
    lost = SnapshotFailed(
        f"nothing was heard of its session on node {pending.node!r} since {pending.heartbeat}",
        "look at that node; delete the snapshot if the node is gone",
    )
    return _of_pending(pending, snapshot, repository, "failed", lost)


def delete(store: ObjectStore, snapshot: str, *, conditions: bool, only_writer: bool) -> None:
    """Delete a snapshot: a tombstone, and before it, for one that is not committed, the mark that it never will be.

    Without conditional PUTs only a committed one, unless the caller knows that no session can commit it any more
    (`only_writer`). Nothing happens to one that is deleted already. Raises NotFound, Unsupported.
    """
    check_repository(store)
    if store.head(layout.tombstone(snapshot)) is not None:
        return  # first of all: another one must not come while garbage collection frees the name
    key = layout.manifest(snapshot)
    if store.head(key) is None:
        if store.head(layout.pending(snapshot)) is None:
            raise NotFound(f"there is no snapshot {snapshot} in {store.where}", "see: stillframe snapshot list")
        mark = records.encode(Aborted(snapshot=snapshot, reason="it was deleted", aborted=now()))
        if conditions:
            store.put_if_absent(key, mark)
        elif only_writer:
            store.put(key, [mark])
        else:
            raise Unsupported(f"snapshot {snapshot} is not committed and cannot be deleted: {_NO_CONDITIONS}")
    stone = records.encode(Tombstone(snapshot=snapshot, deleted=now()))
    store.put_if_absent(layout.tombstone(snapshot), stone)


def fence(store: ObjectStore, snapshot: str, reason: str) -> Manifest | Aborted:
    """End a snapshot whose session nobody can ask: no commit comes after this. What the snapshot is from now on: aborted, or
    complete, if its session was faster. The store honours conditional PUTs. Raises DataCorrupt, Unsupported."""
    mark = Aborted(snapshot=snapshot, reason=reason[:_REASON_MAX], aborted=now())
    if store.put_if_absent(layout.manifest(snapshot), records.encode(mark)):
        return mark
    found = read_manifest(store, snapshot)
    if found is None:
        raise records.missing(layout.manifest(snapshot))
    return found


def settle(store: ObjectStore, snapshot: str, volume: str, node: str, reason: str) -> None:
    """Fence the snapshot of a session whose sender is dead: a request of that may still be under way, and commit it. Nothing
    happens if its name is not that volume's session's on that node any more, which was over long ago."""
    pending = _read_pending(store, snapshot)
    if pending is not None and (pending.volume.id, pending.node) == (volume, node):
        fence(store, snapshot, reason)


def _bare(snapshot: str, repository: str, state: str, error: StillframeError | None) -> Summary:
    return {
        "id": snapshot, "name": None, "handle": f"{repository}:{snapshot}", "repository": repository, "volume": None,
        "lineage": None, "state": state, "created": None, "size_bytes": 0, "logical_block_size": 0,
        "uploaded_bytes": 0, "requests": 0, "stored_bytes": 0, "error": error.to_message() if error else None,
        "progress": None, "session": None, "node": None, "group": None, "parent": None,
    }  # fmt: skip


def _of_pending(
    pending: Pending | None, snapshot: str, repository: str, state: str, error: StillframeError | None
) -> Summary:
    known: Mapping[str, Any] = {}
    if pending is not None:
        known = {
            "name": pending.snapshot.name, "lineage": pending.lineage, "created": pending.begun, "node": pending.node,
            "volume": {"id": pending.volume.id, "name": pending.volume.name}, "group": pending.group,
            "parent": pending.parent,
        }  # fmt: skip
    return {**_bare(snapshot, repository, state, error), **known}


def _of_manifest(manifest: Manifest, repository: str) -> Summary:
    return {
        **_bare(manifest.snapshot.id, repository, "committed", None),
        "name": manifest.snapshot.name,
        "volume": {"id": manifest.volume.id, "name": manifest.volume.name},
        "lineage": manifest.lineage,
        "created": manifest.created,
        "size_bytes": manifest.size_bytes,
        "logical_block_size": manifest.logical_block_size,
        "uploaded_bytes": manifest.uploaded_bytes,
        "requests": manifest.requests,
        "stored_bytes": manifest.stored_bytes,
        "session": manifest.statistics,
        "node": manifest.node,
        "group": manifest.group,
        "parent": manifest.parent,
    }


summary_of_manifest = _of_manifest
