"""Garbage collection of a repository: reads what `garbage` needs to know, and does what that plans.

Functions of an open store, for a process or a thread of their own. Any error ends a collection; what it has removed until
then was garbage. The next one goes on with the rest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec

from driver.core.errors import DataCorrupt, FailedPrecondition, StillframeError, Unsupported
from driver.host.clock import boottime
from driver.store import layout
from driver.store.port import DELETE_MAX, Listed, Listing, ObjectStore, nothing
from driver.transfer import catalog, garbage, records, region
from driver.transfer.garbage import MARGIN_SECONDS, Plan, Snapshot, State, World
from driver.transfer.records import Aborted, Manifest, Pending, RegionEntry
from driver.transfer.turn import Turn

READERS: Final = 8
_BATCH: Final = 32 * READERS
"""So many are read before the turn is looked at: minutes, with a store that is slow."""
_REASON: Final = "nothing was heard of its session for longer than garbage collection waits"
Progress = Callable[[int, int], None]
T = TypeVar("T")
K = TypeVar("K")


def _quietly(done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Ways:
    """How a collection goes about it. `clock` counts seconds, also those in which the machine sleeps."""

    node: str
    margin: float = MARGIN_SECONDS
    readers: int = READERS
    clock: Callable[[], float] = boottime
    progress: Progress = _quietly


def collect(store: ObjectStore, *, conditions: bool, dry_run: bool, ways: Ways) -> dict[str, Any]:
    """Remove what nothing needs, or with `dry_run` only tell:
    {fenced, removed, freed_bytes, kept_objects, kept_bytes, half_written, dry_run}.

    Raises Unsupported for a store without conditional PUTs, FailedPrecondition while another collection runs, and what
    `look` and `garbage.plan` raise.
    """
    if not conditions:
        raise Unsupported(
            f"{store.where} ignores conditional PUTs (If-None-Match): a session could not be kept from committing while "
            "what it needs is removed",
            "use a store that honours them",
        )
    if not is_used(store):
        return _told(Plan((), (), (), 0, 0), 0, 0, dry_run)
    with contextlib.ExitStack() as stack:
        turn = None if dry_run else stack.enter_context(_turn(store, ways))
        world = look(store, ways, turn)
        made = garbage.plan(world, ways.margin)
        half_written = 0
        if turn is not None:
            _carry_out(store, made, turn, ways.progress)
            half_written = store.tidy(world.now - ways.margin)
    return _told(made, len(world.data) - len(made.data), half_written, dry_run)


def _told(made: Plan, kept_objects: int, half_written: int, dry_run: bool) -> dict[str, Any]:
    return {
        "fenced": len(made.fence), "removed": sum(map(len, made.groups)), "freed_bytes": made.freed_bytes,
        "kept_objects": kept_objects, "kept_bytes": made.kept_bytes, "half_written": half_written, "dry_run": dry_run,
    }  # fmt: skip


def is_used(store: ObjectStore) -> bool:
    """Whether there is a repository. Raises DataCorrupt for objects without one, Unsupported for one of a newer format."""
    if catalog.check_repository(store):
        return True
    for prefix in (layout.LINEAGES, layout.SNAPSHOTS):
        if store.list(prefix).objects:
            raise DataCorrupt(
                f"{store.where} holds {prefix} and no {layout.REPOSITORY}; nothing was removed",
                "is this the right repository? look at the bucket's lifecycle rules",
            )
    return False


@contextlib.contextmanager
def _turn(store: ObjectStore, ways: Ways) -> Iterator[Turn]:
    turn = Turn(store, ways.node, ways.clock)
    try:
        turn.begin()
        yield turn
    except StillframeError:
        with contextlib.suppress(StillframeError):
            turn.end()
        raise
    turn.end()


def look(store: ObjectStore, ways: Ways, turn: Turn | None = None) -> World:
    """The repository as it is. Raises DataCorrupt, Unsupported (a newer format, a store without a clock)."""
    go_on = nothing if turn is None else turn.go_on
    data = store.list(layout.LINEAGES, go_on)  # before the snapshots: docs/format.md
    listed = store.list(layout.SNAPSHOTS, go_on)
    if not listed.now:
        raise Unsupported(f"{store.where} does not tell its time (no Date header)", "nothing can be collected there")
    if turn is not None:
        turn.check(listed)
    snapshots = _read_all(store, listed, ways, go_on)
    world = World(listed.now, {item.key: item for item in data.objects}, snapshots)
    world = _with_packs(store, world, ways, go_on)
    if garbage.needed(world, ways.margin) <= world.data.keys():
        return world
    later = store.list(layout.LINEAGES, go_on)  # of snapshots that were committed after the first listing
    return replace(world, later=frozenset(item.key for item in later.objects))


def grouped(listed: Listing) -> dict[str, dict[str, Listed]]:
    """What a listing of `snapshots/` shows, by snapshot and kind."""
    objects: dict[str, dict[str, Listed]] = {}
    for item in listed.objects:
        named = layout.snapshot_of(item.key)
        if named is not None:
            objects.setdefault(named[0], {})[named[1]] = item
    return objects


def _batches(items: Sequence[K], go_on: Callable[[], None]) -> Iterator[Sequence[K]]:
    """A few after a few, and `go_on` before each."""
    for start in range(0, len(items), _BATCH):
        go_on()
        yield items[start : start + _BATCH]


def _read_all(store: ObjectStore, listed: Listing, ways: Ways, go_on: Callable[[], None]) -> dict[str, Snapshot]:
    """Every snapshot, read; but none whose session was withdrawn since the listing."""
    entries: dict[str, RegionEntry] = {}

    def one(of: tuple[str, dict[str, Listed]]) -> Snapshot | None:
        return read(store, Snapshot(*of), listed.now, ways.margin, entries)

    batches = _batches(list(grouped(listed).items()), go_on)
    found = {snapshot.id: snapshot for some in batches for snapshot in each(some, one, ways.readers) if snapshot is not None}
    world = World(listed.now, {}, found)
    for name in garbage.parents(world, ways.margin):
        parent = world.snapshots.get(name)
        if parent is not None and parent.manifest is None and "manifest" in parent.objects:
            catalog.read_manifest(store, name)  # raises again what made it unreadable
    return dict(world.snapshots)


def read(
    store: ObjectStore, snapshot: Snapshot, now: float, margin: float, entries: dict[str, RegionEntry]
) -> Snapshot | None:
    """A snapshot with what its records say, as far as that matters; None if its session was withdrawn since the listing.
    `entries` is shared by all, to save memory. Raises DataCorrupt, Unsupported, FailedPrecondition."""
    key = layout.pending(snapshot.id)
    if "manifest" in snapshot.objects:
        try:
            manifest = catalog.read_manifest(store, snapshot.id)
        except DataCorrupt:
            if garbage.state_of(snapshot, now, margin) is State.OVER:
                return snapshot  # nothing of it is needed
            raise
        if manifest is None:
            raise FailedPrecondition(
                f"{layout.manifest(snapshot.id)} was listed in {store.where} and is gone; nothing was removed",
                "run it again if a garbage collection was at work; if not, look at the bucket's lifecycle rules",
            )
        return replace(snapshot, manifest=_smaller(manifest, entries))
    if garbage.state_of(snapshot, now, margin) is not State.RUNNING:
        return snapshot
    data = store.get(key, records.SMALL_BYTES_MAX)
    return None if data is None else replace(snapshot, pending=records.decode(data, Pending, key))


def _smaller(manifest: Manifest | Aborted, entries: dict[str, RegionEntry]) -> Manifest | Aborted:
    """The same with less memory: snapshots share most of their regions."""
    if isinstance(manifest, Aborted):
        return manifest
    regions = tuple(entries.setdefault(entry.key, entry) for entry in manifest.regions if entry.key is not None)
    return msgspec.structs.replace(manifest, regions=regions, statistics=None)


def _with_packs(store: ObjectStore, world: World, ways: Ways, go_on: Callable[[], None]) -> World:
    """The same, with the packs of the indexes that stay. Raises DataCorrupt, Unsupported."""
    kept, spared = garbage.kept_indexes(world, ways.margin), garbage.spared_indexes(world, ways.margin)
    indexes = spared | kept
    packs: set[str] = set()
    spared_packs: set[str] = set()
    done = 0
    for some in _batches(sorted(indexes), go_on):
        for key, found in each(some, lambda key: (key, _packs_in(store, world, indexes[key], key)), ways.readers):
            (packs if key in kept else spared_packs).update(found)
        done += len(some)
        ways.progress(done, len(indexes))
    return replace(world, packs=packs, spared_packs=spared_packs)


def _packs_in(store: ObjectStore, world: World, entry: RegionEntry, key: str) -> list[str]:
    """The packs of an index, none if it is not there: by the listing's own strings, which saves memory."""
    lineage = layout.lineage_of(key) or ""
    names = (layout.pack(lineage, str(pack.name)) for pack in read_packs(store, entry, key) or ())
    return [world.data[name].key if name in world.data else name for name in names]


def read_packs(store: ObjectStore, entry: RegionEntry, key: str) -> tuple[region.Pack, ...] | None:
    """The packs of an index that a manifest names; None if it is not there. Raises DataCorrupt, Unsupported."""
    data = store.get(key, region.BYTES_MAX)
    if data is None:
        return None
    packs = region.decode_packs(data, key)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise records.corrupt(key, "it is not the one that the manifest names")
    return packs


def each(items: Iterable[K], do: Callable[[K], T], readers: int) -> list[T]:
    """Do something with each, so many at once."""
    if readers == 1:
        return [do(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        return list(pool.map(do, items))


def _carry_out(store: ObjectStore, made: Plan, turn: Turn, progress: Progress) -> None:
    for snapshot in made.fence:
        turn.go_on()
        if isinstance(catalog.fence(store, snapshot, _REASON), Manifest):
            raise FailedPrecondition(f"snapshot {snapshot} was committed meanwhile; nothing was removed", "run it again")
    done, total = 0, sum(map(len, made.groups))
    for keys in made.groups:
        for start in range(0, len(keys), DELETE_MAX):
            turn.go_on()
            some = keys[start : start + DELETE_MAX]
            store.delete_many(some)
            done += len(some)
            progress(done, total)
