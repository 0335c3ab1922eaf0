"""Garbage collection against random histories: sessions, deletions, deaths, zombies, clocks that differ, all at once.

What a committed snapshot needs is never removed, whatever happens between any two requests of a collection; what nobody
needs is gone once everything has been quiet for long enough.
"""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.core.errors import AlreadyExists, FailedPrecondition, StillframeError
from driver.core.ids import snapshot_id
from driver.core.sizes import GIB
from driver.store import layout
from driver.store.port import Listed, Listing, Part, Pieces
from driver.transfer import catalog, collect, garbage, records, region
from driver.transfer.records import Aborted, Manifest, Named, RegionEntry
from driver.transfer.region import Chunk, Codec

HOUR = 3600.0
MARGIN = garbage.MARGIN_SECONDS
LINEAGES = [str(uuid.UUID(int=n + 1 << 64)) for n in range(2)]


class Store:
    """Objects in memory, with a clock; `between` is called before each request."""

    where = "memory"

    def __init__(self) -> None:
        self.now = 1e9
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.between: Callable[[], None] = lambda: None

    def _request(self) -> None:
        self.now += 1
        self.between()

    def get(self, key: str, maximum_bytes: int) -> bytes | None:
        self._request()
        return self.objects[key][0] if key in self.objects else None

    def get_range(self, key: str, offset: int, length: int) -> Part | None:
        raise NotImplementedError

    def put(self, key: str, pieces: Pieces) -> None:
        self._request()
        self.objects[key] = (b"".join(bytes(piece) for piece in pieces), self.now)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._request()
        if key in self.objects:
            return False
        self.objects[key] = (data, self.now)
        return True

    def delete(self, key: str) -> None:
        self._request()
        self.objects.pop(key, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)  # a batch may stop anywhere

    def head(self, key: str) -> Listed | None:
        self._request()
        return Listed(key, len(self.objects[key][0]), self.objects[key][1]) if key in self.objects else None

    def list(self, prefix: str) -> Listing:
        self._request()
        found = [Listed(key, len(data), at) for key, (data, at) in self.objects.items() if key.startswith(prefix)]
        return Listing(tuple(found), self.now)

    def close(self) -> None:
        pass


class Actor:
    """A session, step by step: begin, packs, indexes, commit. It may die, or sleep and wake up as a zombie."""

    def __init__(self, store: Store, dice: random.Random, name: str, parent: Manifest | None, skew: float) -> None:
        self.store = store
        self.dice = dice
        self.named = Named(id=snapshot_id(name), name=name)
        self.parent = parent
        self.lineage = parent.lineage if parent else dice.choice(LINEAGES)
        self.skew = skew
        self.heard = 0.0
        self.steps = self._run()

    def step(self) -> bool:
        """Do the next thing. False when nothing is left to do."""
        try:
            next(self.steps)
        except (StopIteration, StillframeError):
            return False
        return True

    def _time(self) -> str:
        return datetime.fromtimestamp(self.store.now + self.skew, UTC).isoformat()

    def _heartbeat(self) -> None:
        record = records.Pending(
            snapshot=self.named, volume=self.named, lineage=self.lineage, node="n", begun=self.begun, heartbeat=self._time(),
            parent=self.parent.snapshot.id if self.parent else None,
        )  # fmt: skip
        self.store.objects[layout.pending(self.named.id)] = (records.encode(record), self.store.now)
        self.heard = self.store.now

    def _run(self) -> Iterator[None]:
        store = self.store
        self.begun = self._time()
        catalog.begin(store, catalog.Beginning(self.named, self.named, self.lineage, "n"), {}, "r")
        self._heartbeat()
        yield
        if self.parent is not None and layout.tombstone(self.parent.snapshot.id) in store.objects:
            return  # an engine takes no deleted parent; it looks after its pending.json is written
        kept = list(self.parent.regions) if self.parent and self.dice.random() < 0.7 else []
        yield
        entries = [*kept]
        for number in range(len(kept), self.dice.randrange(1, 3) if not kept else len(kept)):
            pack = uuid.UUID(int=self.dice.getrandbits(128), version=4)
            store.objects[layout.pack(self.lineage, str(pack))] = (b"p" * 100, store.now)
            yield
            chunk = Chunk(Codec.ZSTD, 0, 0, 100, bytes(16))
            index = region.encode(region.build(number, uuid.UUID(self.lineage), [chunk], {0: (pack, 100)}))
            key = layout.region(self.lineage, str(uuid.UUID(int=self.dice.getrandbits(128), version=4)))
            store.objects[key] = (index, store.now)
            entries.append(RegionEntry(number, key, len(index), "0" * 64))
            yield
        if store.now - self.heard > MARGIN / 2:
            return  # silent for half the margin: it fails by itself
        manifest = Manifest(
            snapshot=self.named, volume=self.named, lineage=self.lineage, node="n", created=self.begun,
            committed=self._time(), size_bytes=len(entries) * GIB, logical_block_size=4096, regions=tuple(entries),
            stored_chunks=1, zero_chunks=0, stored_bytes=1, uploaded_bytes=1, requests=1,
        )  # fmt: skip
        store.put_if_absent(layout.manifest(self.named.id), records.encode(manifest))


def manifests(store: Store) -> dict[str, Manifest]:
    """The committed snapshots whose tombstone, if there is one, is younger than the margin."""
    found = {}
    for key, (data, _) in store.objects.items():
        named = layout.snapshot_of(key)
        if named and named[1] == "manifest":
            stone = store.objects.get(layout.tombstone(named[0]))
            manifest = records.decode_manifest(data, key)
            if isinstance(manifest, Manifest) and (stone is None or stone[1] > store.now - MARGIN):
                found[named[0]] = manifest
    return found


def needed(store: Store) -> set[str]:
    """Every object that they need. Fails if an index is gone."""
    keys: set[str] = set()
    for manifest in manifests(store).values():
        for entry in manifest.regions:
            assert entry.key is not None
            assert entry.key in store.objects, f"{manifest.snapshot.name} has lost {entry.key}"
            keys.add(entry.key)
            index = region.decode(store.objects[entry.key][0], entry.key)
            keys |= {layout.pack(manifest.lineage, str(pack.name)) for pack in index.packs}
    return keys


class History:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.store = Store()
        self.actors: list[Actor] = []
        self.count = 0
        self.busy = False
        catalog.open_repository(self.store)
        self.store.between = self.something

    def something(self) -> None:
        """What others do between two requests. Not of their own."""
        if self.busy:
            return
        self.busy = True
        try:
            for _ in range(self.dice.randrange(3)):
                self._one()
            assert needed(self.store) <= self.store.objects.keys()
        finally:
            self.busy = False

    def _one(self) -> None:
        what = self.dice.random()
        if what < 0.15:
            self.count += 1
            name = f"s{self.dice.randrange(self.count + 2)}"  # names come back
            live = list(manifests(self.store).values())
            parent = self.dice.choice(live) if live and self.dice.random() < 0.6 else None
            skew = self.dice.choice((0.0, HOUR, -HOUR))
            self.actors = [actor for actor in self.actors if actor.named.name != name]  # a sender is dead before the next
            self.actors.append(Actor(self.store, self.dice, name, parent, skew))
        elif what < 0.3:
            names = sorted(manifests(self.store))
            if names:
                with contextlib.suppress(StillframeError):
                    catalog.delete(self.store, self.dice.choice(names), conditions=True, only_writer=False)
        elif what < 0.35:
            for _ in range(self.dice.choice((1, 1, 8))):  # some sessions take days, and are heard of all the time
                self.store.now += self.dice.choice((60.0, HOUR, 10 * HOUR, 10 * HOUR, 30 * HOUR))
                self.heartbeats()
        elif self.actors:
            actor = self.dice.choice(self.actors)
            if self.dice.random() < 0.05 or not actor.step():
                self.actors.remove(actor)  # it has died, or is done

    def heartbeats(self) -> None:
        """Those that are awake are heard of."""
        for actor in self.actors:
            if actor.heard and self.dice.random() < 0.95:
                manifest = self.store.objects.get(layout.manifest(actor.named.id))
                if manifest is None and self.store.now - actor.heard < MARGIN / 2:
                    actor._heartbeat()

    def collect(self) -> None:
        with contextlib.suppress(FailedPrecondition, AlreadyExists):
            collect.collect(self.store, conditions=True, dry_run=False)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(st.integers(0, 2**32))
def test_what_is_needed_stays_and_what_is_not_goes(seed: int) -> None:
    history = History(seed)
    for _ in range(12):
        for _ in range(history.dice.randrange(20)):
            history.something()
            history.heartbeats()
        history.collect()
    history.store.between = lambda: None
    for _ in range(3):
        history.store.now += 2 * MARGIN
        history.collect()
    left = {key for key in history.store.objects if layout.lineage_of(key)}
    assert left == needed(history.store)
    records_left = {named[0] for key in history.store.objects if (named := layout.snapshot_of(key))}
    assert records_left == set(manifests(history.store))


def test_a_dry_run_removes_nothing() -> None:
    history = History(1)
    for _ in range(200):
        history.something()
    history.store.between = lambda: None
    history.store.now += 3 * MARGIN
    before = dict(history.store.objects)
    told = collect.collect(history.store, conditions=True, dry_run=True)
    assert told["removed"] > 0
    assert history.store.objects == before


def test_an_aborted_manifest_keeps_a_zombie_from_committing() -> None:
    store = Store()
    catalog.open_repository(store)
    actor = Actor(store, random.Random(3), "zombie", None, 0.0)
    for _ in range(3):
        actor.step()
    store.now += 2 * MARGIN
    collect.collect(store, conditions=True, dry_run=False)
    assert isinstance(records.decode_manifest(store.objects[layout.manifest(actor.named.id)][0], "m"), Aborted)
    actor.heard = store.now  # even one that does not know how long it slept
    while actor.step():
        pass
    assert manifests(store) == {}
