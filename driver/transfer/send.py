"""The sender: takes sealed chunks out of shared memory, stores them, and commits the snapshot by its manifest.

One process a session, under the sender lock, in a fixed order for each buffer: the pack object is in the store, its
chunks are in the spool file, the buffer is FREE. So a sender that dies has lost nothing: what is READY is sent again by
its successor, in a pack of a new name, and what the spool has twice is the same. A chunk that the parent has is not sent,
and a region of which nothing changed has the parent's index. Threads: the caller polls the buffers, three workers compress,
hash and upload, one renews pending.json.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from driver.core.errors import Internal, SnapshotFailed, StillframeError
from driver.core.sizes import CHUNK_BYTES, chunks_of
from driver.host.clock import boottime
from driver.store import layout
from driver.store.port import ObjectStore
from driver.transfer import catalog, merge, pack, records, region, repack, specs
from driver.transfer.chunks import Compressor
from driver.transfer.packbuffer import Entry, Header, PackBuffers, State
from driver.transfer.parent import Parent
from driver.transfer.records import Manifest, RegionEntry
from driver.transfer.region import Chunk, Codec
from driver.transfer.silence import Silence
from driver.transfer.spool import Spool

WORKERS: Final = 3
POLL_SECONDS: Final = 0.003
HEARTBEAT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Session:
    """The snapshot in the making. `created` is the time of the cut."""

    of: catalog.Beginning
    created: str
    size_bytes: int
    logical_block_size: int
    group: str | None = None


class Meter:
    """The sender's words in the shared memory. Any thread."""

    def __init__(self, packs: PackBuffers) -> None:
        self._packs = packs
        self._lock = threading.Lock()  # guards the words, which have one writer process
        self.guard: Callable[[], None] = lambda: None

    def add(self, **counts: int) -> None:
        with self._lock:
            for word, count in counts.items():
                self._packs.set(Header[word], self._packs.get(Header[word]) + count)

    def request(self) -> None:
        """Before each attempt. Raises what `guard` raises."""
        self.guard()
        self.add(REQUESTS=1)

    def retry(self) -> None:
        self.add(RETRIES=1)


class Sender:
    """Sends one session. `conditions`: the store honours conditional PUTs. `statistics` is asked at the end. What the spool
    lacks is the `parent`'s, if there is one."""

    def __init__(
        self, store: ObjectStore, session: Session, packs: PackBuffers, spool: Spool, meter: Meter, *,
        conditions: bool, parent: Parent | None = None, statistics: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store = store
        self._session = session
        self._packs = packs
        self._spool = spool
        self._meter = meter
        self._conditions = conditions
        self._parent = parent
        self._statistics = statistics
        self._again: list[tuple[int, int]] = []
        self._arenas = pack.Arenas()
        self._local = threading.local()
        self._silence = Silence(packs)
        meter.guard = self._silence.check
        self._fenced: StillframeError | None = None
        self._ended = threading.Event()

    def run(self) -> Manifest:
        """Until the snapshot is committed. Raises what ends the session for good: every StillframeError."""
        counts = self._spool.counts()
        self._packs.set(Header.STORED_CHUNKS, counts.stored)
        self._packs.set(Header.ZERO_CHUNKS, counts.zero)
        self._packs.set(Header.SAME_CHUNKS, counts.same)
        self._packs.set(Header.STORED_BYTES, counts.stored * CHUNK_BYTES)
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()
        pool = concurrent.futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="send")
        try:
            self._drain(pool)
            self._check_complete()
            regions = list(pool.map(self._send_region, range(self._spool.regions)))
            return self._commit(regions)
        finally:
            self._ended.set()
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def again(self) -> list[tuple[int, int]]:
        """After the commit: runs (first, count) of chunks that the next session should send again."""
        return repack.within(sorted(self._again))

    # --- packs

    def _drain(self, pool: concurrent.futures.ThreadPoolExecutor) -> None:
        """Send buffers as they get READY, until the sweep is done and none is left."""
        sending: dict[concurrent.futures.Future[None], int] = {}
        while True:
            self._check_fence()
            swept = self._packs.get(Header.SWEEP_DONE)
            taken = set(sending.values())
            ready = [number for number in self._packs.packs_in(State.READY) if number not in taken]
            for number in ready:
                sending[pool.submit(self._send_pack, number)] = number
            ended = [future for future in sending if future.done()]
            for future in ended:
                future.result()
                del sending[future]
            if ended:
                continue
            if swept and not sending and not ready and not self._packs.packs_in(State.FILLING):
                return
            time.sleep(POLL_SECONDS)

    def _send_pack(self, number: int) -> None:
        known = self._parent.digest if self._parent is not None else lambda chunk: None
        encoded = pack.encode(self._packs, number, self._compressor(), self._arenas, known)
        try:
            if encoded.pieces:
                name = uuid.uuid4()
                self._store.put(layout.pack(self._session.of.lineage, str(name)), encoded.pieces)
                self._note(encoded.chunks, self._spool.add_pack(name, encoded.size_bytes))
            for entry in encoded.zero:
                self._spool.put_zero(entry.chunk, entry.count)
            for chunk in encoded.same:
                self._spool.put_same(chunk)
        finally:
            encoded.release()
        self._packs.set_state(number, State.FREE)
        self._meter.add(
            UPLOADED_BYTES=encoded.size_bytes,
            STORED_CHUNKS=len(encoded.chunks),
            STORED_BYTES=len(encoded.chunks) * CHUNK_BYTES,
            ZERO_CHUNKS=_total(encoded.zero),
            SAME_CHUNKS=len(encoded.same),
        )

    def _compressor(self) -> Compressor:
        """The thread's own."""
        if not hasattr(self._local, "compressor"):
            self._local.compressor = Compressor()
        compressor: Compressor = self._local.compressor
        return compressor

    def _note(self, chunks: list[tuple[int, Chunk]], number: int) -> None:
        """Write the pack's chunks into the spool, neighbours at once."""
        run: list[Chunk] = []
        first = 0
        for position, chunk in chunks:
            if run and position != first + len(run):
                self._spool.put(first, run)
                run = []
            if not run:
                first = position
            run.append(chunk._replace(pack=number))
        if run:
            self._spool.put(first, run)

    # --- the end

    def _check_complete(self) -> None:
        """What was not swept is taken for the parent's: so everything that was to be swept must be in the spool."""
        found, expected = sum(self._spool.counts()), self._packs.get(Header.SWEPT_CHUNKS)
        if found != expected:
            raise Internal(
                f"the snapshot was not committed: of {expected} chunks that were to be sent, {found} were",
                "a defect of Stillframe: keep the engine's log and report it",
            )

    def _send_region(self, number: int) -> RegionEntry:
        self._check_fence()
        parent = self._parent
        before = parent.entry(number) if parent is not None else None
        before_chunks = parent.chunks(number) if parent is not None else 0
        if before is not None and not self._spool.is_touched(number):
            return before
        if self._spool.is_zero(number):
            return RegionEntry(number)
        chunks = self._spool.chunks(number)
        of_parent = parent.index(number) if parent is not None and merge.needs_parent(chunks) else None
        is_known = before is not None and (before.is_zero or of_parent is not None)
        if before is not None and is_known and merge.is_unchanged(chunks, of_parent, before_chunks):
            return before
        sizes = self._spool.sizes({chunk.pack for chunk in chunks if chunk.codec in (Codec.RAW, Codec.ZSTD)})
        lineage = uuid.UUID(self._session.of.lineage)
        index = merge.merge(number, lineage, chunks, sizes, of_parent, before_chunks)
        return RegionEntry(number) if index is None else self._put_index(index)

    def _put_index(self, index: region.RegionIndex) -> RegionEntry:
        data = region.encode(index)
        key = layout.region(self._session.of.lineage, str(uuid.uuid4()))
        self._store.put(key, [data])
        self._meter.add(UPLOADED_BYTES=len(data))
        self._again.extend(repack.chunks_to_send_again(index))
        return RegionEntry(index.number, key, len(data), data_digest(data), sum(pack.live for pack in index.packs))

    def _commit(self, regions: list[RegionEntry]) -> Manifest:
        """PUT the manifest, on condition that there is none; an answer that was lost is looked up."""
        self._check_fence()
        session = self._session
        stored = sum(entry.stored_chunks for entry in regions)
        manifest = Manifest(
            snapshot=session.of.snapshot, volume=session.of.volume, lineage=session.of.lineage, node=session.of.node,
            parent=self._parent.id if self._parent is not None else None,
            created=session.created, committed=catalog.now(), size_bytes=session.size_bytes,
            logical_block_size=session.logical_block_size, regions=tuple(regions),
            stored_chunks=stored, zero_chunks=chunks_of(session.size_bytes) - stored, stored_bytes=stored * CHUNK_BYTES,
            uploaded_bytes=self._packs.get(Header.UPLOADED_BYTES),
            requests=self._packs.get(Header.REQUESTS) + 1, statistics=self._statistics(),
            group=session.group,
        )  # fmt: skip
        data = records.encode(manifest)
        key = layout.manifest(session.of.snapshot.id)
        if not self._conditions:
            found = catalog.read_manifest(self._store, session.of.snapshot.id)
            if found is None:
                self._store.put(key, [data])
            else:
                manifest = self._accept(found)
        elif not self._store.put_if_absent(key, data):
            found = catalog.read_manifest(self._store, session.of.snapshot.id)
            manifest = self._accept(found)
        self._meter.add(UPLOADED_BYTES=len(data))
        return manifest

    def _accept(self, found: Manifest | records.Aborted | None) -> Manifest:
        """The manifest that is there, if this session made it. Raises SnapshotFailed."""
        if isinstance(found, Manifest):
            if (found.volume.id, found.created) == (self._session.of.volume.id, self._session.created):
                return found
            raise SnapshotFailed(
                f"another snapshot of the name {found.snapshot.name!r} was committed first, on node {found.node!r}",
                "take another name",
            )
        reason = found.reason if found is not None else "its manifest came and went"
        raise SnapshotFailed(f"the snapshot was ended from outside: {reason}")

    # --- the heartbeat

    def _heartbeat(self) -> None:
        """Renew pending.json; learn of a deletion. The outermost loop of its thread."""
        begun = self._session.created  # before anything was stored, whenever this sender was started
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                began = boottime()
                catalog.write_pending(self._store, self._session.of, begun)
                self._silence.heard(began)
                found = catalog.read_manifest(self._store, self._session.of.snapshot.id)
                if found is not None and not self._ended.is_set():
                    self._accept(found)
            except StillframeError as error:
                self._fenced = error
                return
            except Exception as error:  # the outermost loop of a thread; without a heartbeat there is no session
                traceback.print_exc()
                self._fenced = SnapshotFailed(f"its heartbeat stopped: {error!r}", "the engine's log has the details")
                return

    def _check_fence(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        self._silence.check()


def data_digest(data: bytes) -> str:
    """SHA-256 of an object's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def session_of(spec: specs.Send) -> Session:
    """The session that a `send` job describes."""
    volume = spec.volume
    named = records.Named(spec.snapshot.id, spec.snapshot.name)
    parent = spec.parent.id if spec.parent is not None else None
    of = catalog.Beginning(named, records.Named(volume.id, volume.name), spec.lineage, spec.node, spec.group, parent)
    return Session(of, spec.snapshot.created, volume.size_bytes, volume.logical_block_size, spec.group)


def _total(entries: list[Entry]) -> int:
    return sum(entry.count for entry in entries)
