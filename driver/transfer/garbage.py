"""What may be removed from a repository: pure functions from what was listed and read to a plan. Any thread.

docs/format.md, "What may be removed, and when", has the rules and why they suffice; here is only what they come to:

    committed   its objects stay
    deleted     a tombstone younger than the margin: as if it were committed
    running     nothing of its lineage goes that may be this session's, and its parent stays whole, tombstone or not
    silent      pending, not heard of for the margin: fenced by an `aborted` manifest before anything goes
    aborted     cannot commit; its records are the fence, and stay for the margin, and for two after the last heartbeat
    over        deleted, for longer than the margin: its records go

An index or a pack goes when it is older than the margin and nothing of this keeps it. What has another name stays.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from driver.core.errors import DataCorrupt, FailedPrecondition
from driver.store import layout
from driver.store.port import Listed
from driver.transfer.records import Aborted, Manifest, Pending, RegionEntry

MARGIN_SECONDS: Final = 24 * 3600.0
FUTURE_SECONDS: Final = 3600.0
"""By so much an object may be newer than the store's present time: machines of one store differ a little."""
_NAMED_MAX: Final = 5
_HINT: Final = "see: stillframe repository check; look at the bucket's lifecycle rules"


class State(enum.Enum):
    """What a snapshot is to garbage collection."""

    COMMITTED = enum.auto()
    DELETED = enum.auto()
    RUNNING = enum.auto()
    SILENT = enum.auto()
    ABORTED = enum.auto()
    OVER = enum.auto()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a listing shows of a snapshot, by kind (pending, manifest, deleted), and what its records say.

    A manifest that is listed was read, but for one that cannot be read of a snapshot that is over.
    """

    id: str
    objects: Mapping[str, Listed]
    manifest: Manifest | Aborted | None = None
    pending: Pending | None = None


@dataclass(frozen=True, slots=True)
class World:
    """A repository at one time, `now`, by the store's clock.

    `data` is the listing of lineages, made *before* that of `snapshots`; `later` has the keys of another one, made after it.
    `packs` are those that the `kept_indexes` name, `spared_packs` those of the `spared_indexes`, as far as they are there.
    """

    now: float
    data: Mapping[str, Listed]
    snapshots: Mapping[str, Snapshot]
    packs: Set[str] = frozenset()
    spared_packs: Set[str] = frozenset()
    later: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """Snapshots to fence; then objects to remove, group after group: no group is begun before the one before is gone."""

    fence: tuple[str, ...]
    data: tuple[str, ...]
    records: tuple[tuple[str, ...], ...]
    freed_bytes: int
    kept_bytes: int

    @property
    def groups(self) -> Iterator[tuple[str, ...]]:
        yield self.data
        yield from self.records


def is_over(item: Listed, now: float, margin: float) -> bool:
    """Whether an object is older than the margin."""
    return item.modified < now - margin


def state_of(snapshot: Snapshot, now: float, margin: float) -> State:
    """The one state of a snapshot."""
    stone, pending = snapshot.objects.get("deleted"), snapshot.objects.get("pending")
    if isinstance(snapshot.manifest, Aborted):
        return State.ABORTED
    if "manifest" in snapshot.objects:
        if stone is None:
            return State.COMMITTED
        return State.OVER if is_over(stone, now, margin) else State.DELETED
    if pending is None:
        return State.OVER  # nothing but a tombstone: a collection died before it came to that
    return State.SILENT if is_over(pending, now, margin) else State.RUNNING


def _in(world: World, margin: float, *states: State) -> Iterator[Snapshot]:
    return (snapshot for snapshot in world.snapshots.values() if state_of(snapshot, world.now, margin) in states)


def parents(world: World, margin: float) -> set[str]:
    """Snapshots that running sessions build on: they stay as they are."""
    named = (snapshot.pending.parent for snapshot in _in(world, margin, State.RUNNING) if snapshot.pending is not None)
    return {parent for parent in named if parent is not None}


def _kept(world: World, margin: float) -> Iterator[Manifest]:
    """The manifests whose objects must be there."""
    for snapshot in _in(world, margin, State.COMMITTED, State.DELETED):
        if isinstance(snapshot.manifest, Manifest):
            yield snapshot.manifest


def _spared(world: World, margin: float) -> Iterator[Manifest]:
    """The manifests whose objects stay for a running session's sake, as far as they are there: a collection that died may
    have removed some of them. That session will find the tombstone, and do without."""
    named = parents(world, margin)
    for snapshot in _in(world, margin, State.OVER):
        if snapshot.id in named and isinstance(snapshot.manifest, Manifest):
            yield snapshot.manifest


def _indexes(manifests: Iterable[Manifest]) -> dict[str, RegionEntry]:
    return {entry.key: entry for manifest in manifests for entry in manifest.regions if entry.key is not None}


def kept_indexes(world: World, margin: float) -> dict[str, RegionEntry]:
    """The indexes that must be there, by key."""
    return _indexes(_kept(world, margin))


def spared_indexes(world: World, margin: float) -> dict[str, RegionEntry]:
    """The indexes that stay for a running session's sake, by key."""
    return _indexes(_spared(world, margin))


def needed(world: World, margin: float) -> set[str]:
    """Every object that must be there, as far as `packs` tells."""
    return {*kept_indexes(world, margin), *world.packs}


def plan(world: World, margin: float = MARGIN_SECONDS) -> Plan:
    """Raises DataCorrupt if an object that is needed was not listed, FailedPrecondition if the store's clock makes no sense:
    then nothing is to be removed at all."""
    _check_clock(world)
    kept = needed(world, margin)
    _check_complete(kept, world)
    kept |= {*spared_indexes(world, margin), *world.spared_packs}
    since = _since(world, margin)
    gone = []
    for key, item in world.data.items():
        lineage = layout.lineage_of(key)
        if lineage is None or key in kept or not is_over(item, world.now, margin):
            continue
        if item.modified < since.get(lineage, math.inf):
            gone.append(key)
    freed = sum(world.data[key].size_bytes for key in gone)
    return Plan(
        fence=tuple(sorted(snapshot.id for snapshot in _in(world, margin, State.SILENT))),
        data=tuple(sorted(gone)),
        records=_records(world, margin),
        freed_bytes=freed,
        kept_bytes=sum(item.size_bytes for item in world.data.values()) - freed,
    )


def _check_clock(world: World) -> None:
    for item in (*world.data.values(), *(item for of in world.snapshots.values() for item in of.objects.values())):
        if item.modified > world.now + FUTURE_SECONDS:
            hours = (item.modified - world.now) / 3600
            raise FailedPrecondition(
                f"{item.key} is {hours:.1f} hours newer than the store's present time; nothing was removed",
                "the store's clock is wrong, or was: nothing can be said of any object's age before it is right",
            )


def _check_complete(kept: set[str], world: World) -> None:
    missing = sorted(key for key in kept if key not in world.data and key not in world.later)
    if missing:
        raise DataCorrupt(
            f"objects that snapshots need are not in the store's listing ({len(missing)} in all): "
            f"{', '.join(missing[:_NAMED_MAX])}; nothing was removed",
            _HINT,
        )


def _since(world: World, margin: float) -> dict[str, float]:
    """By lineage: what is as new as that may be a running session's."""
    since: dict[str, float] = {}
    for snapshot in _in(world, margin, State.RUNNING):
        if snapshot.pending is not None:
            lineage = snapshot.pending.lineage
            since[lineage] = min(since.get(lineage, math.inf), _first(snapshot, snapshot.pending, margin))
    return since


def _first(snapshot: Snapshot, pending: Pending, margin: float) -> float:
    """When a session can have stored its first object, by the store's clock: its own may be off by as much as the margin.
    One that is off by half of that now, or went back, tells nothing."""
    begun, heartbeat = (datetime.fromisoformat(at).timestamp() for at in (pending.begun, pending.heartbeat))
    off = abs(heartbeat - snapshot.objects["pending"].modified)
    return -math.inf if off > margin / 2 or begun > heartbeat else begun - margin


def _records(world: World, margin: float) -> tuple[tuple[str, ...], ...]:
    """The records that go: all manifests, then all tombstones, then all pending.json: with that a name is free."""
    named = parents(world, margin)
    groups: dict[str, list[str]] = {"manifest": [], "deleted": [], "pending": []}
    for snapshot in _in(world, margin, State.ABORTED, State.OVER):
        if snapshot.id not in named and _is_done(snapshot, world.now, margin):
            for kind in groups.keys() & snapshot.objects.keys():
                groups[kind].append(snapshot.objects[kind].key)
    return tuple(tuple(sorted(keys)) for keys in groups.values())


def _is_done(snapshot: Snapshot, now: float, margin: float) -> bool:
    """Whether nobody can come back to its name any more. What keeps a session from committing stays for longer than one may
    sleep that does not notice it."""
    slept = margin if isinstance(snapshot.manifest, Aborted) else 0.0
    return all(is_over(item, now, margin + (slept if kind == "pending" else 0.0)) for kind, item in snapshot.objects.items())
