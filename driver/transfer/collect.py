"""Garbage collection of a repository, its check, and its figures: reads what `garbage` needs to know, does what that plans.

Functions of an open store, for a process of their own. Any error ends a collection: what was removed until then was garbage.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from driver.core.errors import DataCorrupt, FailedPrecondition, Unsupported
from driver.store import layout
from driver.store.port import ObjectStore
from driver.transfer import catalog, garbage, records, region
from driver.transfer.garbage import MARGIN_SECONDS, Plan, Snapshot, World
from driver.transfer.records import Aborted, Manifest, Pending

_READERS: Final = 8
_BATCH: Final = 500
T = TypeVar("T")
K = TypeVar("K")


def look(store: ObjectStore, margin: float) -> World:
    """The repository as it is. Raises DataCorrupt, Unsupported (a newer format, a store without a clock), NotFound."""
    if not catalog.check_repository(store):
        raise DataCorrupt(f"{store.where} holds no {layout.REPOSITORY}", "is this the right repository?")
    data = store.list(layout.LINEAGES)  # before the snapshots: see `garbage`
    listed = store.list(layout.SNAPSHOTS)
    if not listed.now:
        raise Unsupported(f"{store.where} does not tell its time (no Date header)", "nothing can be collected there")
    snapshots: dict[str, Snapshot] = {}
    for item in listed.objects:
        named = layout.snapshot_of(item.key)
        if named is not None:
            snapshots.setdefault(named[0], Snapshot(named[0])).objects[named[1]] = item
    for snapshot in _all(snapshots.values(), lambda snapshot: _read(store, snapshot)):
        snapshots[snapshot.id] = snapshot
    world = World(listed.now, {item.key: item for item in data.objects}, snapshots)
    wanted = garbage.kept_indexes(world, margin)
    _look_again(store, world, wanted - world.data.keys())
    world.packs_of = dict(_all(wanted, lambda key: (key, _packs_of(store, key))))
    _look_again(store, world, {pack for packs in world.packs_of.values() for pack in packs} - world.data.keys())
    return world


def _look_again(store: ObjectStore, world: World, keys: Iterable[str]) -> None:
    """What a snapshot needs and the listing lacks may have come after the listing. Raises DataCorrupt if it is not there."""
    for key in sorted(keys):
        item = store.head(key)
        if item is None:
            raise DataCorrupt(
                f"{key}, which a snapshot needs, is not in {store.where}; nothing was removed",
                "see: stillframe repository check; look at the bucket's lifecycle rules",
            )
        world.data[key] = item


def _all(items: Iterable[K], do: Callable[[K], T]) -> list[T]:
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(do, items))


def _read(store: ObjectStore, snapshot: Snapshot) -> Snapshot:
    """A manifest that came since the listing counts; one that went is a collection at work beside this one."""
    snapshot.manifest = catalog.read_manifest(store, snapshot.id)
    if snapshot.manifest is None and "manifest" in snapshot.objects:
        raise FailedPrecondition(f"snapshot {snapshot.id} changed meanwhile", "another collection runs; try again later")
    if snapshot.manifest is None and "pending" in snapshot.objects:
        key = layout.pending(snapshot.id)
        data = store.get(key, records.SMALL_BYTES_MAX)
        if data is None:
            raise FailedPrecondition(f"snapshot {snapshot.id} changed meanwhile", "try again")
        snapshot.pending = records.decode(data, Pending, key)
    return snapshot


def _packs_of(store: ObjectStore, key: str) -> frozenset[str]:
    data = store.get(key, region.BYTES_MAX)
    if data is None:
        raise records.missing(key)
    index = region.decode(data, key)
    lineage = layout.lineage_of(key)
    return frozenset(layout.pack(lineage or "", str(pack.name)) for pack in index.packs)


def collect(
    store: ObjectStore, *, conditions: bool, dry_run: bool, margin: float = MARGIN_SECONDS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Remove what nothing needs, or with `dry_run` only tell: {fenced, removed, freed_bytes, kept_bytes}.

    Raises Unsupported for a store without conditional PUTs, and what `look` and `garbage.plan` raise.
    """
    if not conditions:
        raise Unsupported(
            f"{store.where} ignores conditional PUTs (If-None-Match): a session could not be kept from committing while "
            "what it needs is removed",
            "use a store that honours them",
        )
    world = look(store, margin)
    made = garbage.plan(world, margin)
    if not dry_run:
        _carry_out(store, made, on_progress)
    return {
        "fenced": len(made.fence), "removed": len(made.data) + len(made.records), "freed_bytes": made.freed_bytes,
        "kept_bytes": made.kept_bytes, "dry_run": dry_run,
    }  # fmt: skip


def _carry_out(store: ObjectStore, made: Plan, on_progress: Callable[[int, int], None]) -> None:
    for snapshot in made.fence:
        mark = records.encode(Aborted(snapshot=snapshot, reason="nothing was heard of its session", aborted=catalog.now()))
        if not store.put_if_absent(layout.manifest(snapshot), mark) and not isinstance(
            catalog.read_manifest(store, snapshot), Aborted
        ):
            raise FailedPrecondition(f"snapshot {snapshot} was committed meanwhile; nothing was removed", "try again")
    keys = [*made.data, *made.records]
    for start in range(0, len(keys), _BATCH):
        store.delete_many(keys[start : start + _BATCH])
        on_progress(min(start + _BATCH, len(keys)), len(keys))


def check(store: ObjectStore, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Whether every object that a snapshot needs is there, in its size: {snapshots, objects, hurt, orphans}.

    `hurt` names the objects that are missing or of a wrong size, by snapshot; `orphans` counts what no snapshot needs.
    """
    data = {item.key: item for item in store.list(layout.LINEAGES).objects}
    known: dict[str, list[str]] = {}
    needed: set[str] = set()
    hurt: dict[str, list[str]] = {}
    names = sorted({named[0] for item in store.list(layout.SNAPSHOTS).objects if (named := layout.snapshot_of(item.key))})
    for number, name in enumerate(names):
        try:
            manifest = catalog.read_manifest(store, name)
        except DataCorrupt as error:
            hurt[name] = [error.message]
            continue
        if not isinstance(manifest, Manifest):
            continue
        wrong: list[str] = []
        for entry in manifest.regions:
            if entry.key is not None:
                needed.add(entry.key)
                if entry.key not in known:
                    known[entry.key] = _wrong_in(store, entry.key, entry.size_bytes, data, needed)
                wrong += known[entry.key]
        if wrong:
            hurt[manifest.snapshot.name] = sorted(set(wrong))
        on_progress(number + 1, len(names))
    return {"snapshots": len(names), "objects": len(data), "hurt": hurt, "orphans": len(data.keys() - needed)}


def _wrong_in(store: ObjectStore, key: str, size_bytes: int, data: dict[str, Any], needed: set[str]) -> list[str]:
    """What is wrong with an index and its packs; their keys join `needed`."""
    if key not in data:
        return [f"{key} is missing"]
    if data[key].size_bytes != size_bytes:
        return [f"{key} has {data[key].size_bytes} bytes instead of {size_bytes}"]
    try:
        index = region.decode(store.get(key, region.BYTES_MAX) or b"", key)
    except DataCorrupt as error:
        return [error.message]
    wrong = []
    for pack in index.packs:
        name = layout.pack(str(index.lineage), str(pack.name))
        needed.add(name)
        if name not in data:
            wrong.append(f"{name} is missing")
        elif data[name].size_bytes != pack.size_bytes:
            wrong.append(f"{name} has {data[name].size_bytes} bytes instead of {pack.size_bytes}")
    return wrong


def stats(store: ObjectStore) -> dict[str, Any]:
    """Objects and bytes of the repository, by lineage."""
    lineages: dict[str, dict[str, int]] = {}
    for item in store.list(layout.LINEAGES).objects:
        lineage = layout.lineage_of(item.key)
        if lineage is not None:
            known = lineages.setdefault(lineage, {"packs": 0, "regions": 0, "bytes": 0})
            known["packs" if "/packs/" in item.key else "regions"] += 1
            known["bytes"] += item.size_bytes
    states = [summary["state"] for summary in catalog.list_snapshots(store, "")]
    return {
        "snapshots": {state: states.count(state) for state in sorted(set(states))}, "lineages": lineages,
        "objects": sum(one["packs"] + one["regions"] for one in lineages.values()),
        "bytes": sum(one["bytes"] for one in lineages.values()),
    }  # fmt: skip
