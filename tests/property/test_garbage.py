"""Garbage collection against random histories: what is needed is never removed, and what is not goes after the margin.

The rules are docs/format.md's, "What may be removed, and when". STILLFRAME_HISTORIES says how many histories there are.
"""

from __future__ import annotations

import hashlib
import os
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.core.errors import DataCorrupt, Unsupported
from driver.core.ids import snapshot_id
from driver.store import layout
from driver.store.port import Listed, Listing, nothing
from driver.transfer import audit, catalog, collect, garbage, region
from driver.transfer.records import RegionEntry
from driver.transfer.region import Chunk, Codec
from driver.transfer.turn import HELD_UP_SECONDS
from tests.property.histories import LINEAGES, MARGIN, History, Session, play
from tests.property.town import View

HISTORIES: Final = int(os.environ.get("STILLFRAME_HISTORIES", "200"))


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None)
@given(st.integers(0, 2**48))
def test_what_is_needed_stays_and_what_is_not_goes(seed: int) -> None:
    play(seed)


def quiet_history() -> History:
    """A committed snapshot that was deleted, another one that was not, and a session that died; all long ago."""
    history = History(1)
    for name in ("deleted", "kept", "dead"):
        session = Session(history, name, LINEAGES[0], [], 0.0, False)
        history.sessions.append(session)
        with history.in_its_time():
            for _ in range(4 if name == "dead" else 1000):
                if not session.actor.ended:
                    session.actor.step()
            session.actor.die()
    deletion = history.town.enter("deletion", lambda view: catalog.delete(
        view, snapshot_id("deleted"), conditions=True, only_writer=False
    ))  # fmt: skip
    while not deletion.ended:
        deletion.step()
    history.passes(3 * MARGIN)
    return history


def collected(history: History, **changes: Any) -> dict[str, Any]:
    """What an undisturbed collection tells. Raises what it raises."""
    told: dict[str, Any] = {}
    ways = collect.Ways(node="n", readers=1, clock=lambda: history.town.now)

    def run(view: View) -> None:
        told.update(collect.collect(view, **{"conditions": True, "dry_run": False, "ways": ways, **changes}))

    actor = history.town.enter("collection", run)
    while not actor.ended:
        actor.step()
    if actor.error is not None:
        raise actor.error
    return told


def test_a_dry_run_tells_the_same_and_changes_nothing() -> None:
    history = quiet_history()
    before = dict(history.town.objects)
    told = collected(history, dry_run=True)
    assert history.town.objects == before
    assert collected(history) == {**told, "dry_run": False}
    gone = before.keys() - history.town.objects.keys()
    assert (told["fenced"], told["removed"]) == (1, len(gone))
    assert told["freed_bytes"] == sum(len(before[key][0]) for key in gone if layout.lineage_of(key)) > 0


def test_a_store_without_conditional_puts_is_refused() -> None:
    history = quiet_history()
    before = dict(history.town.objects)
    with pytest.raises(Unsupported, match="conditional PUT"):
        collected(history, conditions=False)
    assert history.town.objects == before


def test_a_listing_that_lacks_what_was_just_written_removes_nothing() -> None:
    """An empty one is the worst of these: then nothing would be needed."""
    history = quiet_history()
    before = dict(history.town.objects)

    class Liar(View):
        def list(self, prefix: str, between: Callable[[], None] = nothing) -> Listing:
            found = super().list(prefix, between)
            return Listing((), found.now) if prefix == layout.SNAPSHOTS else found

    ways = collect.Ways(node="n", readers=1, clock=lambda: history.town.now)

    def run(view: View) -> None:
        collect.collect(Liar(history.town, view.actor), conditions=True, dry_run=False, ways=ways)

    actor = history.town.enter("collection", run)
    while not actor.ended:
        actor.step()
    assert isinstance(actor.error, DataCorrupt)
    assert "cannot be relied on" in actor.error.hint
    assert history.town.objects == before


def test_a_check_does_not_call_a_snapshot_hurt_that_was_committed_during_a_listing() -> None:
    """The listing's first pages, with the packs, are from before it; the later ones show its index, and it is complete."""
    history = quiet_history()
    before = set(history.town.objects)
    session = Session(history, "new", LINEAGES[1], [], 0.0, False)
    history.sessions.append(session)
    with history.in_its_time():
        while not session.actor.ended:
            session.actor.step()
    listed: list[str] = []
    told: dict[str, Any] = {}

    class Slow(View):
        def list(self, prefix: str, between: Callable[[], None] = nothing) -> Listing:
            found = super().list(prefix, between)
            listed.append(prefix)
            if listed.count(layout.LINEAGES) > 1:
                return found
            shown = (item for item in found.objects if item.key in before or "/packs/" not in item.key)
            return Listing(tuple(shown), found.now)

    actor = history.town.enter("check", lambda view: told.update(
        audit.check(Slow(history.town, view.actor), collect.Ways(node="n", readers=1))
    ))  # fmt: skip
    while not actor.ended:
        actor.step()
    assert actor.error is None
    assert (told["hurt"], told["snapshots"], listed.count(layout.LINEAGES)) == ([], 2, 2)


def test_a_slow_store_does_not_hold_a_collection_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing and reading may take longer than a turn lasts: it is renewed meanwhile."""
    monkeypatch.setattr(collect, "_BATCH", 1)
    history = quiet_history()

    class Slow(View):
        def get(self, key: str, maximum_bytes: int) -> bytes | None:
            history.town.now += 420
            return super().get(key, maximum_bytes)

        def list(self, prefix: str, between: Callable[[], None] = nothing) -> Listing:
            history.town.now += 420
            return super().list(prefix, between)

    ways = collect.Ways(node="n", readers=1, clock=lambda: history.town.now)
    told: dict[str, Any] = {}
    began = history.town.now

    def run(view: View) -> None:
        told.update(collect.collect(Slow(history.town, view.actor), conditions=True, dry_run=False, ways=ways))

    actor = history.town.enter("collection", run)
    while not actor.ended:
        actor.step()
    assert actor.error is None, actor.error
    assert told["removed"] > 0 and history.town.now - began > HELD_UP_SECONDS


def test_what_many_snapshots_share_takes_memory_once() -> None:
    """Hourly snapshots each have an index of a region that is written to, and these name much the same packs."""
    history = quiet_history()
    lineage, count = uuid.UUID(LINEAGES[0]), 256
    packs = [uuid.UUID(int=1000 + number) for number in range(count)]
    chunks = [Chunk(Codec.ZSTD, number, 0, 100, bytes(16)) for number in range(count)]
    index = region.encode(region.build(0, lineage, chunks, {number: (pack, 100) for number, pack in enumerate(packs)}))
    entry = RegionEntry(0, "", len(index), hashlib.sha256(index).hexdigest())
    keys = [layout.region(LINEAGES[0], str(uuid.UUID(int=2000 + number))) for number in range(300)]
    listed = {key: Listed(key, 1, 1e9) for key in [*keys, *(layout.pack(LINEAGES[0], str(pack)) for pack in packs)]}
    (of,) = (of.manifest for of in history.told.values() if of.deleted is None)
    regions = tuple(msgspec.structs.replace(entry, key=key) for key in keys)
    manifest = msgspec.structs.replace(of, regions=regions)
    snapshot = garbage.Snapshot(of.snapshot.id, {"manifest": Listed("m", 1, 1e9)}, manifest)
    world = garbage.World(1e9, listed, {snapshot.id: snapshot})

    class Full(View):
        def get(self, key: str, maximum_bytes: int) -> bytes | None:
            return index

    store = Full(history.town, history.town.enter("look", lambda view: None))
    tracemalloc.start()
    try:
        found = collect._with_packs(store, world, collect.Ways(node="n", readers=1), nothing)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        history.town.close()
    assert len(found.packs) == count
    assert peak < 2 << 20, "a name of one's own for each pack of each index takes 14 MiB"


def test_an_object_that_is_needed_and_not_there_removes_nothing_and_is_named() -> None:
    for kind in ("packs", "regions"):
        history = quiet_history()
        for key in [key for key in history.needed() if f"/{kind}/" in key]:
            del history.town.objects[key]
            before = dict(history.town.objects)
            with pytest.raises(DataCorrupt, match=f"{key}.*nothing was removed"):
                collected(history)
            assert history.town.objects == before


def test_a_deleted_snapshot_whose_manifest_cannot_be_read_keeps_nobody_from_collecting() -> None:
    history = quiet_history()
    key = layout.manifest(snapshot_id("deleted"))
    history.town.objects[key] = (b"rotten", history.town.objects[key][1])
    assert collected(history)["removed"] > 0
    assert key not in history.town.objects
    key = layout.manifest(snapshot_id("kept"))
    history.town.objects[key] = (b"rotten", history.town.objects[key][1])
    with pytest.raises(DataCorrupt, match=key):
        collected(history)
