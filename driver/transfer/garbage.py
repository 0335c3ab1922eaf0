"""What may be removed from a repository: a pure function from what was listed and read to a plan. Any thread.

    committed                     its indexes and packs stay
    committed, with a tombstone   they stay for the margin, counted from the tombstone by the store's clock
    pending, heard of within      nothing of its lineage goes that may be of this session: younger than its beginning less
    the margin                    the margin (its clock is another one); and what its parent needs stays
    pending, silent for longer    fenced by an `aborted` manifest before anything goes; it can never commit
    aborted                       its records stay for the margin

An index or a pack that nothing of this keeps goes when it is older than the margin. Lineages were listed before snapshots:
whatever a session had stored by then, its pending.json, which is older, was listed too. What has another name stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from driver.core.errors import DataCorrupt
from driver.store import layout
from driver.store.port import Listed
from driver.transfer.records import Aborted, Manifest, Pending

MARGIN_SECONDS: Final = 24 * 3600.0
_NAMED_MAX: Final = 5


@dataclass(slots=True)
class Snapshot:
    """What a listing shows of a snapshot, by kind (pending, manifest, deleted), and what its records say."""

    id: str
    objects: dict[str, Listed] = field(default_factory=dict)
    manifest: Manifest | Aborted | None = None
    pending: Pending | None = None


@dataclass(slots=True)
class World:
    """A repository at one time, `now`, by the store's clock. `packs_of` has the packs of every index that is kept."""

    now: float
    data: dict[str, Listed]
    snapshots: dict[str, Snapshot]
    packs_of: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """In this order: snapshots to fence, objects of lineages to remove, records of snapshots to remove."""

    fence: tuple[str, ...]
    data: tuple[str, ...]
    records: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int


def _is_over(item: Listed, world: World, margin: float) -> bool:
    return item.modified < world.now - margin


def is_running(snapshot: Snapshot, world: World, margin: float) -> bool:
    """Whether its session may still commit."""
    pending = snapshot.objects.get("pending")
    return snapshot.manifest is None and pending is not None and not _is_over(pending, world, margin)


def _parents(world: World, margin: float) -> set[str | None]:
    """Snapshots that running sessions build on: they stay as they are."""
    return {s.pending.parent for s in world.snapshots.values() if s.pending and is_running(s, world, margin)}


def keepers(world: World, margin: float) -> Iterator[Manifest]:
    """The manifests whose objects stay."""
    parents = _parents(world, margin)
    for snapshot in world.snapshots.values():
        if isinstance(snapshot.manifest, Manifest):
            stone = snapshot.objects.get("deleted")
            if stone is None or not _is_over(stone, world, margin) or snapshot.id in parents:
                yield snapshot.manifest


def kept_indexes(world: World, margin: float) -> set[str]:
    """The keys of all indexes that stay."""
    return {entry.key for manifest in keepers(world, margin) for entry in manifest.regions if entry.key is not None}


def plan(world: World, margin: float = MARGIN_SECONDS) -> Plan:
    """Raises DataCorrupt if an object that is needed is not in the listing: then nothing is to be removed at all."""
    indexes = kept_indexes(world, margin)
    kept = indexes | {pack for index in indexes for pack in world.packs_of[index]}
    _check_plausible(kept, world)
    begun: dict[str, float] = {}
    for snapshot in world.snapshots.values():
        if is_running(snapshot, world, margin):
            lineage, since = _beginning(snapshot)
            begun[lineage] = min(begun.get(lineage, since), since)
    gone = []
    for key, item in world.data.items():
        lineage_of = layout.lineage_of(key)
        if key in kept or lineage_of is None or not _is_over(item, world, margin):
            continue
        if "" in begun or item.modified >= begun.get(lineage_of, world.now) - margin:
            continue
        gone.append(key)
    fence = [s.id for s in world.snapshots.values() if _is_silent(s, world, margin)]
    parents = _parents(world, margin)
    ended = [s for s in world.snapshots.values() if s.id not in parents]
    records = [key for snapshot in ended for key in _records_to_remove(snapshot, world, margin)]
    freed = sum(world.data[key].size_bytes for key in gone)
    return Plan(
        tuple(sorted(fence)), tuple(sorted(gone)), tuple(records), freed,
        sum(item.size_bytes for item in world.data.values()) - freed,
    )  # fmt: skip


def _check_plausible(kept: set[str], world: World) -> None:
    missing = sorted(kept - world.data.keys())
    if missing:
        raise DataCorrupt(
            f"{len(missing)} objects that snapshots need are not in the store's listing, among them "
            f"{', '.join(missing[:_NAMED_MAX])}; nothing was removed",
            "see: stillframe repository check; look at the bucket's lifecycle rules",
        )


def _beginning(snapshot: Snapshot) -> tuple[str, float]:
    """Lineage and beginning of a running session; "" for one whose pending.json is gone by now: all lineages, then."""
    if snapshot.pending is None:
        return "", 0.0
    return snapshot.pending.lineage, datetime.fromisoformat(snapshot.pending.begun).timestamp()


def _is_silent(snapshot: Snapshot, world: World, margin: float) -> bool:
    pending = snapshot.objects.get("pending")
    return snapshot.manifest is None and pending is not None and _is_over(pending, world, margin)


def _records_to_remove(snapshot: Snapshot, world: World, margin: float) -> list[str]:
    """The tombstone goes last: while it is there, the name is not free."""
    stone, found = snapshot.objects.get("deleted"), snapshot.objects
    if is_running(snapshot, world, margin) or _is_silent(snapshot, world, margin):
        return []
    if stone is not None:
        if not _is_over(stone, world, margin):
            return []
    elif not isinstance(snapshot.manifest, Aborted) or not _is_over(found["manifest"], world, margin):
        return []
    return [found[kind].key for kind in ("pending", "manifest", "deleted") if kind in found]
