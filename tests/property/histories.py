"""What happens to a repository: sessions of several nodes, full ones and such as build on others, in shared lineages;
deletions, failures, withdrawals; nodes whose clocks are off, that sleep for days or die; restores; several collections at
once, that sleep and die too; listings taken while all that goes on. A seed is a history.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final
from unittest.mock import patch

from driver.core.errors import NotFound, SnapshotFailed, StillframeError
from driver.core.ids import snapshot_id
from driver.core.sizes import GIB
from driver.store import layout
from driver.transfer import catalog, collect, garbage, records, region
from driver.transfer.records import Manifest, Named, RegionEntry
from driver.transfer.region import Chunk, Codec
from driver.transfer.specs import Ancestor
from tests.property.town import HOUR, Actor, Town, View

MARGIN: Final = garbage.MARGIN_SECONDS
LINEAGES: Final = [str(uuid.UUID(int=n + 1 << 64)) for n in range(2)]


@dataclass(frozen=True)
class Told:
    """What the users of a snapshot were told; `deleted` is when, by the store's clock."""

    manifest: Manifest
    data: bytes
    deleted: float | None = None


class Session:
    """One snapshot in the making. Its node's clock is off by `skew`; `blind`: it does not count the time that it sleeps."""

    def __init__(self, history: History, name: str, lineage: str, parents: list[Manifest], skew: float, blind: bool) -> None:
        self.history = history
        self.town = history.town
        self.named = Named(id=snapshot_id(name), name=name)
        self.parents = [Ancestor(manifest.snapshot.id, manifest.created) for manifest in parents]
        self.of = catalog.Beginning(self.named, self.named, lineage, "n")
        self.begun = ""
        self.blind = blind
        self.slow = False
        self.sends = False
        self.slept = 0.0
        self.looked = 0.0
        self.late: tuple[float, Callable[[], object]] | None = None  # when what was under way at its death is done
        self.heard: float | None = None
        self.fenced: StillframeError | None = None
        self.actor = self.town.enter(f"session {name}", self.run)
        self.actor.skew = skew
        self.actor.guard = self.check

    def is_silent(self) -> bool:
        """Whether it was silent for half the margin, as far as it knows."""
        return self.heard is not None and self.town.now - self.heard - self.slept > catalog.SILENCE_SECONDS

    def check(self) -> None:
        """Before each request."""
        if self.fenced is not None:
            raise self.fenced
        if self.is_silent():
            raise SnapshotFailed("it was silent for too long")

    def beat(self) -> None:
        """The heartbeat, of its own thread in real life: at any time, also between two of the session's requests."""
        if not self.sends or self.fenced is not None or self.actor.ended:
            return
        if self.is_silent():
            self.fenced = SnapshotFailed("it was silent for too long")
            return
        self.town.running = self.actor
        record = records.Pending(
            snapshot=self.named, volume=self.named, lineage=self.of.lineage, node="n", begun=self.begun,
            heartbeat=self.town.time(), parent=self.of.parent,
        )  # fmt: skip
        self.town.objects[layout.pending(self.named.id)] = (records.encode(record), self.town.now)
        self.heard, self.slept = self.town.now, 0.0
        if layout.manifest(self.named.id) in self.town.objects:
            self.fenced = SnapshotFailed("it was ended from outside")

    def run(self, view: View) -> None:
        dice = self.town.dice
        self.heard = self.town.now
        parent = catalog.begin(view, self.of, self.parents, {}, "r", conditions=True)
        self.of = replace(self.of, parent=parent.snapshot.id if parent is not None else None)
        self.begun = self.town.time()
        self.looked = self.heard  # a deletion since then is of this one
        self.sends = True
        entries = list(parent.regions) if parent is not None else []
        numbers = range(2) if not entries else dice.sample(range(len(entries)), dice.randrange(len(entries) + 1))
        for number in numbers:
            entry = self._send(view, number, entries[number] if number < len(entries) else None)
            entries[number : number + 1] = [entry]
        manifest = Manifest(
            snapshot=self.named, volume=self.named, lineage=self.of.lineage, node="n", created=self.begun,
            committed=self.town.time(), size_bytes=len(entries) * GIB, logical_block_size=4096, regions=tuple(entries),
            stored_chunks=1, zero_chunks=0, stored_bytes=1, uploaded_bytes=1, requests=1, parent=self.of.parent,
        )  # fmt: skip
        view.put_if_absent(layout.manifest(self.named.id), records.encode(manifest))

    def _send(self, view: View, number: int, before: RegionEntry | None) -> RegionEntry:
        """A region of which something changed: a new pack, and what else the parent's index names, if there is one."""
        chunks, sizes = [], {}
        if before is not None and before.key is not None:
            data = view.get(before.key, 1 << 20)
            if data is None:
                is_ended = layout.manifest(self.named.id) in self.town.objects  # from outside, and will hear of it
                assert is_ended, f"{self.named.name} has lost its parent's {before.key}"
                raise SnapshotFailed("it was ended from outside")
            for place, pack in enumerate(region.decode_packs(data, before.key)):
                chunks.append(Chunk(Codec.ZSTD, place, 0, 100, bytes(16)))
                sizes[place] = (pack.name, 100)
            chunks = chunks[-2:]
        name = uuid.UUID(int=self.town.dice.getrandbits(128), version=4)
        view.put(layout.pack(self.of.lineage, str(name)), [b"p" * 100])
        chunks.append(Chunk(Codec.ZSTD, len(sizes), 0, 100, bytes(16)))
        sizes[len(sizes)] = (name, 100)
        index = region.encode(region.build(number, uuid.UUID(self.of.lineage), chunks, sizes))
        key = layout.region(self.of.lineage, str(uuid.UUID(int=self.town.dice.getrandbits(128), version=4)))
        view.put(key, [index])
        return RegionEntry(number, key, len(index), hashlib.sha256(index).hexdigest())


class History:
    """What happens, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.town = Town(seed)
        self.dice = self.town.dice
        self.sessions: list[Session] = []
        self.names = 0
        self.collected = 0
        self.checked = -1
        self.skews: dict[str, float] = {}  # of nodes; a name's sessions are of one volume, and so of one node
        self.told: dict[str, Told] = {}
        self.memory: list[Manifest] = []
        self.indexes: dict[str, frozenset[str]] = {}
        self.town.on_made = self._made
        first = self.town.enter("first", catalog.open_repository)
        while not first.ended:
            self.town.step(first)

    def in_its_time(self) -> AbstractContextManager[object]:
        """Records tell the town's time."""
        return patch.object(catalog, "now", self.town.time)

    # --- what is so

    def _made(self, key: str, data: bytes) -> None:
        """Somebody was told that a snapshot is committed, or that it is deleted."""
        snapshot, kind = layout.snapshot_of(key) or ("", "")
        if kind == "manifest":
            record = records.decode_manifest(data, key)
            if isinstance(record, Manifest):
                session = next(one for one in self.sessions[::-1] if one.named.id == snapshot)
                _, stone = self.town.objects.get(layout.tombstone(snapshot), (b"", 0.0))
                while_made = stone if stone and stone >= session.looked else None
                self.told[snapshot] = Told(record, data, while_made)
                self.memory.append(record)
            else:
                self.told.pop(snapshot, None)
        elif kind == "deleted" and snapshot in self.told and self.told[snapshot].deleted is None:
            self.told[snapshot] = replace(self.told[snapshot], deleted=self.town.now)

    def promised(self) -> dict[str, Told]:
        """The snapshots that are committed, and not deleted for longer than the margin."""
        return {
            snapshot: of
            for snapshot, of in self.told.items()
            if of.deleted is None or of.deleted > self.town.now - MARGIN
        }

    def needed(self) -> set[str]:
        """Every object that they need. Fails if their records are not what they were, or an index is gone."""
        keys: set[str] = set()
        for snapshot, of in self.promised().items():
            name = of.manifest.snapshot.name
            found = self.town.objects.get(layout.manifest(snapshot))
            assert found is not None and found[0] is of.data, f"{name} has lost its manifest"
            is_deleted = layout.tombstone(snapshot) in self.town.objects
            assert is_deleted == (of.deleted is not None), f"{name} is {'' if is_deleted else 'not '}deleted, its users hear"
            for entry in of.manifest.regions:
                assert entry.key is not None
                assert entry.key in self.town.objects, f"{name} has lost {entry.key}"
                keys |= {entry.key, *self._packs(entry.key)}
        return keys

    def _packs(self, key: str) -> frozenset[str]:
        if key not in self.indexes:
            packs = region.decode_packs(self.town.objects[key][0], key)
            self.indexes[key] = frozenset(layout.pack(layout.lineage_of(key) or "", str(pack.name)) for pack in packs)
        return self.indexes[key]

    def check(self) -> None:
        if self.town.changes == self.checked:
            return
        self.checked = self.town.changes
        lost = self.needed() - self.town.objects.keys()
        assert not lost, f"lost: {sorted(lost)}"

    # --- what happens

    def happen(self) -> None:
        """The next thing."""
        self._land(self.town.now)
        what = self.dice.random()
        awake = self.town.awake()
        if what < 0.01:
            self.dice.choice((self._scene, self._nap, self._last_request))()
        elif what < 0.04:
            self._session()
        elif what < 0.06:
            self._delete()
        elif what < 0.07:
            self._restore()
        elif what < 0.09:
            self.collection()
        elif what < 0.11:
            self.passes(self.dice.choice((60.0, HOUR, HOUR, 10 * HOUR, 10 * HOUR, 25 * HOUR, 30 * HOUR, 60 * HOUR)))
        elif what < 0.12 and awake:
            self._sleep(self.dice.choice(awake))
        elif what < 0.13 and awake:
            self._kill(self.dice.choice(awake))
        elif what < 0.16:
            for session in self.sessions:
                self._beat(session)
        elif awake:
            actor = self.dice.choice(awake)
            for _ in range(self.dice.choice((1, 1, 2, 5))):
                if not actor.ended:
                    self.town.step(actor)
                    self.check()
        self.check()

    def _scene(self) -> None:
        """What is rare by chance: a snapshot that was deleted a day ago, and all those at once who may still want it, or its
        name, or to remove it."""
        for _ in range(self.dice.randrange(1, 3)):
            self._session()
        self._play(self.town.awake())
        victim = self._delete()
        self._play(self.town.awake())
        if self.dice.random() < 0.5:
            self._session()
            self._play(self.town.awake(), self.dice.randrange(12))
        self.passes(self.dice.choice((25 * HOUR, 49 * HOUR)))
        before = set(self.town.actors)
        for _ in range(self.dice.randrange(1, 3)):
            self.collection()
        for _ in range(self.dice.randrange(1, 4)):
            self.dice.choice((self._session, lambda: self._session(victim), self._delete, self._restore))()
        cast = [actor for actor in self.town.actors if actor not in before or self.dice.random() < 0.2]
        if self.dice.random() < 0.2:
            self._play(cast, self.dice.randrange(40))
            self._kill(self.dice.choice(cast))
        self._play(cast)

    def _nap(self) -> None:
        """Sessions that stop anywhere, for days; meanwhile their parents are deleted, and garbage is collected."""
        for _ in range(self.dice.randrange(1, 3)):
            self._session()
            self._play(self.town.awake(), self.dice.randrange(16))
        sleepers = [actor for actor in self.town.awake() if self.dice.random() < 0.7]
        for actor in sleepers:
            self._sleep(actor)
        self._delete()
        self._play(self.town.awake())
        for _ in range(self.dice.randrange(1, 5)):
            self.passes(1.05 * MARGIN)
            self._play([self.collection()])
            if self.dice.random() < 0.3:
                self._session()
                self._play(self.town.awake())
        self._play(self.town.awake())

    def _last_request(self) -> None:
        """A session that has been at work for a day dies, and what it had sent last may arrive after the next collection."""
        before = list(self.sessions)
        self._session()
        for session in [session for session in self.sessions if session not in before]:
            session.slow = True
            self._step(session.actor, self.dice.randrange(3, 9))
            self.passes(26 * HOUR)
            self._step(session.actor, self.dice.randrange(5))
            if not session.actor.ended:
                self._kill(session.actor)
        self._play([self.collection()])

    def _step(self, actor: Actor, requests: int) -> None:
        for _ in range(requests):
            if not actor.ended:
                self.town.step(actor)
                self.check()

    def _play(self, cast: Sequence[Actor], steps: int = 400) -> None:
        """These go on, in any order, some faster than others, and nobody else."""
        speeds = {actor: self.dice.choice((1, 5, 25)) for actor in cast}
        for _ in range(steps):
            cast = [actor for actor in cast if not actor.ended and actor.asleep_until <= self.town.now]
            if not cast:
                return
            (actor,) = self.dice.choices(cast, [speeds[actor] for actor in cast])
            for _ in range(self.dice.choice((1, 1, 2, 4, 8))):
                if not actor.ended:
                    self.town.step(actor)
                    self.check()

    def _session(self, again: str | None = None) -> None:
        """A new one, perhaps of the name of another: `again` is the id of one."""
        self.names += 1
        name = f"s{self.names if self.dice.random() < 0.6 else self.dice.randrange(self.names)}"
        name = next((f"s{number}" for number in range(self.names) if snapshot_id(f"s{number}") == again), name)
        if any(session.named.name == name and self._is_at_work(session) for session in self.sessions):
            return  # an engine has one session of a name, which is settled before the next
        chosen = self.dice.choice(self.memory[-6:]) if self.memory and self.dice.random() < 0.8 else None  # deleted or not
        lineage = chosen.lineage if chosen is not None else self.dice.choice(LINEAGES)
        hours = self.dice.choice((0, 1, -1, 11, -11, 40, -40))
        skew = self.skews.setdefault(name, hours * HOUR)
        others = [manifest for manifest in self.memory[-6:] if manifest.lineage == lineage]
        parents = [chosen, *self.dice.sample(others, self.dice.randrange(2))] if chosen is not None else []
        self.sessions.append(Session(self, name, lineage, parents, skew, self.dice.random() < 0.5))

    def _delete(self) -> str | None:
        """Some snapshot, whatever has become of it; rather one that somebody builds on. Its id."""
        names = sorted({named[0] for key in self.town.objects if (named := layout.snapshot_of(key))})
        parents = [parent.id for session in self.sessions for parent in session.parents]
        if not names:
            return None
        name = self.dice.choice(parents if parents and self.dice.random() < 0.5 else names)

        def delete(view: View) -> None:
            catalog.delete(view, name, conditions=True, only_writer=False)

        self.town.enter(f"deletion of {name}", delete)
        return name

    def _restore(self) -> None:
        """Reads a snapshot that is there, slowly: for less than the margin."""
        there = [snapshot for snapshot, of in self.told.items() if of.deleted is None]
        if not there:
            return
        snapshot, began = self.dice.choice(sorted(there)), self.town.now

        def restore(view: View) -> None:
            try:
                manifest = catalog.committed(view, snapshot)
            except (NotFound, SnapshotFailed):
                return
            for entry in manifest.regions:
                assert entry.key is not None
                if view.get(entry.key, 1 << 20) is None:
                    assert self.town.now - began > MARGIN, f"a restore of {manifest.snapshot.name} has lost {entry.key}"
                    return
                for pack in sorted(self.indexes.get(entry.key, ())):
                    if view.get(pack, 1 << 20) is None:
                        assert self.town.now - began > MARGIN, f"a restore of {manifest.snapshot.name} has lost {pack}"
                        return

        self.town.enter(f"restore of {snapshot}", restore)

    def collection(self) -> Actor:
        self.collected += 1
        asleep = 0.0

        def run(view: View) -> None:
            ways = collect.Ways(node="n", readers=1, clock=lambda: self.town.now - asleep)
            collect.collect(view, conditions=True, dry_run=False, ways=ways)

        return self.town.enter(f"collection {self.collected}", run)

    def passes(self, seconds: float) -> None:
        """Time passes; those that are awake are heard of every now and then."""
        for actor in self.town.awake():
            while actor.is_removing and not actor.ended:
                self.town.step(actor)
        until = self.town.now + seconds
        while self.town.now < until:
            then = min(self.town.now + 6 * HOUR, until)
            self._land(then)
            self.town.now = then
            for session in self.sessions:
                if self.dice.random() < 0.97:
                    self._beat(session)
        self.sessions = [session for session in self.sessions if not session.actor.ended or session.late is not None]

    def _is_at_work(self, session: Session) -> bool:
        """Whether a session may still change its records."""
        is_fenced = layout.manifest(session.named.id) in self.town.objects
        return not session.actor.ended or (session.late is not None and not is_fenced)

    def _land(self, until: float) -> None:
        """Do what was under way when sessions died, as far as it comes until then."""
        late = [(*session.late, session) for session in self.sessions if session.late is not None]
        for at, put, session in sorted(late, key=lambda item: item[0]):
            if at > until:
                return
            self.town.now = max(self.town.now, at)
            self.town.say(f"what {session.actor.name} had sent arrives")
            put()
            session.late = None
            self.check()

    def _beat(self, session: Session) -> None:
        if session.slow or session.actor.asleep_until <= self.town.now:
            session.beat()

    def _sleep(self, actor: Actor) -> None:
        """Its node, or what is between that and the store, stops for a while."""
        if actor.is_removing or actor.name.startswith("deletion"):
            return  # neither takes as long as an hour or, of the latter, a day
        seconds = self.dice.choice((HOUR, 13 * HOUR, 30 * HOUR, 47 * HOUR, 100 * HOUR))
        session = next((session for session in self.sessions if session.actor is actor), None)
        if session is not None and self.dice.random() < 0.5:
            session.slow = True  # it has much to send, and is heard of meanwhile
        elif session is not None and session.blind:
            heard = session.heard if session.heard is not None else self.town.now
            seconds = min(seconds, heard + 1.5 * MARGIN - HOUR - self.town.now)  # longer, and no rule helps
            if seconds <= 0:
                return
            session.slow = False
            session.slept += seconds
        elif session is not None:
            session.slow = False
        actor.asleep_until = self.town.now + seconds
        self.town.say(f"{actor.name} sleeps for {seconds / HOUR:.0f} h")

    def _kill(self, actor: Actor) -> None:
        self.town.say(f"{actor.name} dies")
        session = next((session for session in self.sessions if session.actor is actor), None)
        if session is not None and self._may_have_sent(session) and self.dice.random() < 0.5:
            assert actor.asked is not None
            session.late = (self.town.now + self.dice.uniform(0.0, HOUR / 2), actor.asked)
        actor.die()
        if actor in self.town.actors:
            self.town.actors.remove(actor)
        if session is not None and self.dice.random() < 0.5:
            self._settle(session)

    def _may_have_sent(self, session: Session) -> bool:
        """Whether it is about to put an object, and may."""
        try:
            session.check()
        except StillframeError:
            return False
        actor = session.actor
        return actor.asked is not None and not actor.ended and actor.asleep_until <= self.town.now

    def _settle(self, session: Session) -> None:
        """What an engine does when the sender is dead, and its last request perhaps not. Without one, `begin` is over."""
        pending, key = layout.pending(session.named.id), layout.manifest(session.named.id)
        if not session.sends:
            session.late = None
            if key not in self.town.objects and session.heard is not None:
                self.town.objects.pop(pending, None)
        elif pending in self.town.objects:
            mark = records.Aborted(snapshot=session.named.id, reason="its engine died", aborted=self.town.time())
            self.town.put_if_absent(key, records.encode(mark))

    # --- the end

    def quiet(self) -> None:
        """Everybody goes home; then time passes, and collections run undisturbed."""
        self.town.close()
        self._land(self.town.now + HOUR)
        self.sessions.clear()
        for _ in range(4):
            self.passes(1.01 * MARGIN)
            actor = self.collection()
            while not actor.ended:
                actor.step()
                self.check()
            assert actor.error is None, actor.error.message
        left = {key for key in self.town.objects if layout.lineage_of(key)}
        assert left == self.needed(), f"stays for ever: {sorted(left - self.needed())}"
        told = {named[0] for key in self.town.objects if (named := layout.snapshot_of(key))}
        assert told == self.promised().keys(), "records stay for ever"
        assert not [key for key in self.town.objects if key.startswith(layout.COLLECTIONS)]


def play(seed: int, length: int = 500) -> History:
    """A history from its beginning to a quiet end. Raises AssertionError."""
    history = History(seed)
    try:
        with history.in_its_time():
            for _ in range(length):
                history.happen()
            history.quiet()
    except BaseException:
        print("\n".join(history.town.log[-400:]))
        raise
    finally:
        history.town.close()
    return history
