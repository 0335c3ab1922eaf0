"""What a repository holds, and whether it holds what its snapshots need. Reads, and changes nothing.

Functions of an open store, for a process of their own. Bytes are not looked at: `stillframe snapshot verify` reads those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from driver.core.errors import DataCorrupt, Unsupported
from driver.store import layout
from driver.store.port import Listed, ObjectStore
from driver.transfer import catalog, collect, garbage
from driver.transfer.collect import Ways
from driver.transfer.garbage import Snapshot, State
from driver.transfer.records import Manifest, RegionEntry

_NAMED_MAX: Final = 1000
Result = dict[str, Any]


@dataclass(slots=True)
class _Looked:
    """What indexes need, themselves included, and by index what of that is wrong, if anything is."""

    needed: set[str] = field(default_factory=set)
    wrong: dict[str, list[str]] = field(default_factory=dict)


def check(store: ObjectStore, ways: Ways) -> Result:
    """Whether every object that a snapshot needs is there, in its size:

    {snapshots, objects, bytes, hurt: [{id, name, volume, wrong: [what]}], orphans: {objects, bytes},
    unsettled: {objects, bytes}, strange: [key]}

    Orphans are needed by no snapshot; unsettled objects neither, but a session of their lineage runs. Deleted snapshots need
    their objects, but cannot be hurt. Raises what the store answers, DataCorrupt and Unsupported as `collect.is_used`.
    """
    collect.is_used(store)
    data = {item.key: item for item in store.list(layout.LINEAGES).objects}
    listed = store.list(layout.SNAPSHOTS)
    snapshots = [Snapshot(*of) for of in collect.grouped(listed).items()]
    hurt: list[Result] = []
    read: list[tuple[Snapshot, Manifest]] = []
    running: set[str] = set()
    for snapshot in snapshots:
        try:
            found = collect.read(store, snapshot, listed.now, ways.margin, {}) or snapshot
        except (DataCorrupt, Unsupported) as error:
            if "deleted" not in snapshot.objects:
                hurt.append({"id": snapshot.id, "name": None, "volume": None, "wrong": [error.message]})
            continue
        if isinstance(found.manifest, Manifest):
            read.append((found, found.manifest))
        elif found.pending is not None:
            running.add(found.pending.lineage)
    entries = {entry.key: entry for _, manifest in read for entry in manifest.regions if entry.key is not None}
    looked = _look(store, data, entries, ways)
    if looked.wrong:  # perhaps only in a listing during which the snapshot was made
        data |= {item.key: item for item in store.list(layout.LINEAGES).objects}
        again = _look(store, data, {key: entries[key] for key in looked.wrong}, ways)
        looked = _Looked(looked.needed | again.needed, again.wrong)
    for snapshot, manifest in read:
        wrong = sorted({line for entry in manifest.regions for line in looked.wrong.get(entry.key or "", ())})
        if wrong and garbage.state_of(snapshot, listed.now, ways.margin) is State.COMMITTED:
            of = {"id": manifest.volume.id, "name": manifest.volume.name}
            hurt.append({"id": snapshot.id, "name": manifest.snapshot.name, "volume": of, "wrong": wrong[:_NAMED_MAX]})
    idle = [item for key, item in data.items() if layout.lineage_of(key) is not None and key not in looked.needed]
    return {
        "snapshots": sum("manifest" in of.objects and "deleted" not in of.objects for of in snapshots),
        "objects": len(data), "bytes": sum(item.size_bytes for item in data.values()), "hurt": hurt,
        "orphans": _sum(item for item in idle if layout.lineage_of(item.key) not in running),
        "unsettled": _sum(item for item in idle if layout.lineage_of(item.key) in running),
        "strange": [key for key in data if layout.lineage_of(key) is None][:_NAMED_MAX],
    }  # fmt: skip


def _sum(items: Iterable[Listed]) -> Result:
    sizes = [item.size_bytes for item in items]
    return {"objects": len(sizes), "bytes": sum(sizes)}


def _look(store: ObjectStore, data: Mapping[str, Listed], entries: Mapping[str, RegionEntry], ways: Ways) -> _Looked:
    """At indexes and what they name, by the listing `data`."""

    def one(key: str) -> tuple[str, set[str], list[str]]:
        return key, *_look_at(store, data, entries[key], key)

    looked = _Looked()
    keys = sorted(entries)
    for start in range(0, len(keys), collect.READERS * 8):
        some = keys[start : start + collect.READERS * 8]
        for key, needs, wrong in collect.each(some, one, ways.readers):
            looked.needed |= needs
            if wrong:
                looked.wrong[key] = wrong
        ways.progress(start + len(some), len(keys))
    return looked


def _look_at(store: ObjectStore, data: Mapping[str, Listed], entry: RegionEntry, key: str) -> tuple[set[str], list[str]]:
    """What an index needs, and what of that is wrong."""
    needs, wrong = {key}, _wrong(data, key, entry.size_bytes)
    if wrong:
        return needs, wrong
    try:
        packs = collect.read_packs(store, entry, key)
    except (DataCorrupt, Unsupported) as error:
        return needs, [error.message]
    if packs is None:
        return needs, [f"{key} is missing"]
    for pack in packs:
        name = layout.pack(layout.lineage_of(key) or "", str(pack.name))
        needs.add(name)
        wrong += _wrong(data, name, pack.size_bytes)
    return needs, wrong


def _wrong(data: Mapping[str, Listed], key: str, size_bytes: int) -> list[str]:
    if key not in data:
        return [f"{key} is missing"]
    if data[key].size_bytes != size_bytes:
        return [f"{key} has {data[key].size_bytes} bytes instead of {size_bytes}"]
    return []


def stats(store: ObjectStore) -> Result:
    """How much there is: {snapshots: {state: count}, objects, bytes, lineages}; of each lineage {volumes, snapshots, packs,
    regions, bytes}."""
    lineages: dict[str, Result] = {}

    def of(lineage: str) -> Result:
        return lineages.setdefault(lineage, {"volumes": [], "snapshots": 0, "packs": 0, "regions": 0, "bytes": 0})

    for item in store.list(layout.LINEAGES).objects:
        lineage = layout.lineage_of(item.key)
        if lineage is not None:
            of(lineage)["packs" if "/packs/" in item.key else "regions"] += 1
            of(lineage)["bytes"] += item.size_bytes
    summaries = catalog.list_snapshots(store, "")
    for summary in summaries:
        if summary["state"] == "committed":
            of(summary["lineage"])["snapshots"] += 1
            if summary["volume"]["name"] not in of(summary["lineage"])["volumes"]:
                of(summary["lineage"])["volumes"].append(summary["volume"]["name"])
    states = [summary["state"] for summary in summaries]
    return {
        "snapshots": {state: states.count(state) for state in sorted(set(states))},
        "objects": sum(one["packs"] + one["regions"] for one in lineages.values()),
        "bytes": sum(one["bytes"] for one in lineages.values()),
        "lineages": lineages,
    }  # fmt: skip
