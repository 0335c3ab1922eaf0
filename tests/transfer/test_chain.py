"""Two hundred snapshots of a volume and of one that was restored from it, deleted at random, collected now and then: each
that is left restores byte by byte, by a stranger's reader, and nothing else stays."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from driver.core.ids import new_id
from driver.core.settings import Repository
from driver.core.sizes import CHUNK_BYTES, chunks_of
from driver.store.open import open_store
from driver.store.port import ObjectStore
from driver.store.retry import BRIEF
from driver.transfer import catalog, send
from driver.transfer.collect import Ways, collect
from driver.transfer.packbuffer import PackBuffers
from driver.transfer.parent import Parent
from driver.transfer.records import Named
from driver.transfer.specs import Ancestor
from driver.transfer.spool import Spool
from tests.reader import restore
from tests.transfer.feed import Feed, make_packs
from tests.transfer.volumes import make_volume

SNAPSHOTS = 200
LINEAGE = new_id()
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Volume:
    """A volume, what was written to it since its base, and that."""

    content: bytearray
    base: Ancestor | None = None
    written: set[int] = field(default_factory=set)
    id: str = field(default_factory=new_id)

    def write(self, dice: random.Random) -> None:
        chunks = len(self.content) // CHUNK_BYTES
        for chunk in dice.sample(range(chunks), dice.choice((0, 1, 5, chunks // 2))):
            place = slice(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)
            self.content[place] = dice.choice((bytes(CHUNK_BYTES), dice.randbytes(CHUNK_BYTES), self.content[place]))
            self.written.add(chunk)
        if dice.random() < 0.05 and chunks < 80:
            self.content += dice.randbytes(CHUNK_BYTES) + bytes(CHUNK_BYTES)


def snapshot(store: ObjectStore, volume: Volume, number: int, dice: random.Random) -> str:
    """Take one as the engine would: its parent is the base if it is still there; what was written is known, or not."""
    name, created = new_id(), (BEGAN + timedelta(seconds=number)).isoformat()
    of = catalog.Beginning(Named(name, f"s-{number}"), Named(volume.id, "v"), LINEAGE, "node-1")
    manifest = catalog.begin(store, of, [volume.base] if volume.base else [], {}, "folder", conditions=True)
    size, fd = len(volume.content), make_packs(2)
    order = set(range(chunks_of(size)))
    if manifest is not None and dice.random() < 0.8:
        order = {chunk for chunk in order if chunk in volume.written or chunk >= chunks_of(manifest.size_bytes)}
    packs, spool_fd = PackBuffers(fd), os.memfd_create("spool")
    spool = Spool(spool_fd, chunks_of(size))
    parent = None if manifest is None else Parent(store, manifest, spool)
    session = send.Session(of, created, size, 4096)
    sender = send.Sender(store, session, packs, spool, send.Meter(packs), conditions=True, parent=parent)
    thread = Feed(fd, bytes(volume.content), sorted(order)).start()
    sender.run()
    thread.join()
    volume.base = Ancestor(name, created)
    volume.written = {first + place for first, count in sender.again for place in range(count)}
    packs.close()
    os.close(fd)
    os.close(spool_fd)
    return name


def a_day_later(folder: Path) -> None:
    """Everything in the repository is older than garbage collection waits."""
    then = time.time() - 25 * 3600
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_every_snapshot_that_is_left_is_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    store = open_store(Repository("folder", f"file://{folder}"), BRIEF)
    catalog.open_repository(store)
    dice = random.Random(11)
    volumes = [Volume(bytearray(make_volume(60)))]
    alive: dict[str, bytes] = {}
    removed = 0
    for number in range(SNAPSHOTS):
        volume = dice.choice(volumes)
        volume.write(dice)
        alive[snapshot(store, volume, number, dice)] = bytes(volume.content)
        if number == 30:
            volumes.append(Volume(bytearray(volume.content), volume.base))
        while len(alive) > dice.randrange(1, 30):
            gone = dice.choice(list(alive))
            catalog.delete(store, gone, conditions=True, only_writer=False)
            del alive[gone]
        if number % 20 == 19:
            a_day_later(folder)
            removed += collect(store, conditions=True, dry_run=False, ways=Ways("node-1"))["removed"]
    assert removed > SNAPSHOTS
    for name, content in alive.items():
        restore(folder, name, tmp_path / "restored")
        assert (tmp_path / "restored").read_bytes() == content
    for name in alive:
        catalog.delete(store, name, conditions=True, only_writer=False)
    for _ in range(3):
        a_day_later(folder)
        collect(store, conditions=True, dry_run=False, ways=Ways("node-1"))
    assert [path for path in folder.glob("lineages/**/*") if path.is_file()] == []
    store.close()
