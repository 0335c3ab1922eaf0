"""The sweeper: visits the chunks that a session's parent lacks, fixes their bytes as of the cut, hands them to the sender.

A chunk is read without a lock, in slices of at most 128 KiB (up to four at once while nobody uses the volume), into its
final place in a pack buffer; then, under its lock, what was captured of it is laid over, its directory entry is stored,
its word becomes SEALED. What the read raced with was captured first, so the overlay repairs it. A hole is decided under
the locks of its chunks: untouched ones still hold what they held at the cut. One process a session, one thread but for
the reads; a successor goes on where it died.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence, Set
from typing import Final, NoReturn

from driver.core.sizes import (
    CHUNK_BYTES,
    CHUNKS_PER_PACK,
    CHUNKS_PER_REGION,
    UNIT_BYTES,
    chunks_of,
)
from driver.transfer.packbuffer import (
    BUFFER_BYTES,
    DIRECTORY_BYTES,
    ENTRIES_MAX,
    HEADER_BYTES,
    Entry,
    Header,
    Kind,
    PackBuffers,
    State,
)
from driver.volume import changes
from driver.volume.backing import Backing
from driver.volume.layout import (
    FIRST_SPILL,
    LOCK_CHUNKS,
    SEALED,
    SLOTS_MAX,
    Failure,
    Shared,
    Word,
)
from driver.volume.order import Order
from driver.volume.pace import SLICES_MAX, Pace
from driver.volume.preimages import Locks, Preimage, Slots, chain, recover_sealed

SLICE_CHUNKS: Final = 2
_FREE_POLL_SECONDS: Final = 0.001
_ZERO_CHUNK: Final = bytes(CHUNK_BYTES)


class SessionFailed(Exception):
    """The session failed; its reason stands in the shared memory."""


class Sweeper:
    """Sweeps one session. `spill` is a descriptor of the spill file."""

    def __init__(
        self, shared: Shared, packs: PackBuffers, backing: Backing, spill: int, locks: Locks, pace: Pace
    ) -> None:
        self._shared = shared
        self._packs = packs
        self._backing = backing
        self._spill = spill
        self._locks = locks
        self._pace = pace
        self._slots = Slots(shared, locks, SLOTS_MAX + 1)
        self._chunks = chunks_of(shared.words[Word.SESSION_BYTES])
        self._pack: int | None = None
        self._place = 0
        self._order = Order(shared, locks, self._chunks)

    def run(self) -> None:
        """Sweep to the end, or until the session fails (SessionFailed)."""
        if self._packs.get(Header.SWEEP_DONE):
            return
        self.recover()
        while (length_bytes := self.step()) is not None:
            self._pace.after(length_bytes)
        self.finish()

    def recover(self) -> None:
        """Go on after a predecessor's death: what its directory counts is sealed."""
        for pack in self._packs.packs_in(State.FILLING):
            self._pack = pack
            self._place = self._packs.places(pack)
            for entry in self._packs.entries(pack):
                self._mark_sealed(entry.chunk, entry.count)
        if self._pack is not None:
            recover_sealed(self._shared, self._locks)
            self._hand_over_if_full()

    def step(self) -> int | None:
        """Seal the next slices, or the next hole; how many bytes were read. None when every chunk is sealed."""
        self._check()
        if self._pace.buffer_fills() and (first := self._order.most_captured()) is not None:
            return self._seal_chunks([first])
        first = self._order.next()
        if first is None:
            return None
        if not self._shared.chunks[first] and self._seal_hole(first, self._run_end(first)):
            return 0
        return self._seal_chunks(self._with_others(first))

    def _run_end(self, first: int) -> int:
        """The end of the pending chunks from `first` on, within its region."""
        region_end = min((first // CHUNKS_PER_REGION + 1) * CHUNKS_PER_REGION, self._chunks)
        return changes.pending_end(self._shared, first, region_end)

    def _with_others(self, first: int) -> list[int]:
        """The chunks to read at once: a slice from the pending chunk `first` on, and more such slices if the pace allows."""
        found = self._slice(first, frozenset())
        for _ in range(self._pace.slices() - 1):
            taken = frozenset(found)
            following = self._order.next(taken)
            if following is None or self._is_hole(following):
                break
            found += self._slice(following, taken)
        return found

    def _slice(self, first: int, taken: Set[int]) -> list[int]:
        """At most `SLICE_CHUNKS` pending chunks from `first` on."""
        found = [first]
        for chunk in range(first + 1, min(self._run_end(first), first + SLICE_CHUNKS)):
            if chunk in taken or self._shared.is_sealed(chunk):
                break
            found.append(chunk)
        return found

    def _is_hole(self, chunk: int) -> bool:
        return not self._shared.chunks[chunk] and self._hole_end(chunk, chunk + 1) > chunk

    def finish(self) -> None:
        """Hand over the last buffer and say that the sweep is done."""
        if self._pack is not None:
            self._hand_over()
        self._check_spill()
        pending = self._shared.words[Word.PENDING_CHUNKS]
        self._shared.words[Word.SWEPT_CHUNKS] = pending
        self._packs.set(Header.SWEPT_CHUNKS, pending)
        self._packs.set(Header.SWEEP_DONE, 1)

    def _check_spill(self) -> None:
        """What went to the spill file was written behind our back. If the disk refused some of it, and memory was short,
        what was read back of it may have been something else: then the session fails.

        A description is told of a refused write once, and that of `_spill` is everybody's: whoever is killed while the disk
        takes its time must leave it untold for its successor. So what takes long is done with a description of our own.
        """
        if not self._shared.words[Word.SPILL_READY]:
            return
        try:
            own = os.open(f"/proc/self/fd/{self._spill}", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fdatasync(own)
            finally:
                os.close(own)
            os.fdatasync(self._spill)
        except OSError as error:
            self._shared.fail(Failure.SPILL_ERROR, error.errno or errno.EIO)
            raise SessionFailed from error

    def _check(self) -> None:
        self._shared.words[Word.SWEEP_NANOSECONDS] = time.monotonic_ns()
        if self._shared.words[Word.FAILED]:
            raise SessionFailed

    def _seal_hole(self, first: int, end: int) -> bool:
        """Seal the untouched chunks from `first` on that the file has no data for. Whether there was one.

        What is untouched under its lock was not written since the cut, so the look at the file was a look at the cut.
        """
        stop = self._hole_end(first, end)
        if stop <= first:
            return False
        pack = self._room()
        start, length = LOCK_CHUNKS + first, stop - first
        self._locks.acquire(start, length)
        try:
            untouched = length
            words = self._shared.chunks[first:stop]
            if words.tobytes().count(0) != 4 * length:
                untouched = next(index for index, word in enumerate(words) if word)
            if not untouched:
                return False
            stop = first + untouched
            self._packs.append(pack, Entry(Kind.ZERO, first, stop - first))
            if stop - first == CHUNKS_PER_REGION:
                self._shared.regions[first // CHUNKS_PER_REGION] = 1
                self._shared.release_chunks(first // CHUNKS_PER_REGION)
            else:
                self._shared.chunks[first:stop] = memoryview(b"\xff" * (4 * (stop - first))).cast("I")
        finally:
            self._locks.release(start, length)
        self._shared.words[Word.SWEPT_CHUNKS] += stop - first
        self._hand_over_if_full()
        return True

    def _hole_end(self, first: int, end: int) -> int:
        """The first chunk at or after `first` that may hold data, at most `end`."""
        try:
            return self._backing.data_from(first * CHUNK_BYTES, end * CHUNK_BYTES) // CHUNK_BYTES
        except OSError as error:
            self._fail_reading(error)

    def _fail_reading(self, error: OSError) -> NoReturn:
        self._shared.fail(Failure.READ_ERROR, error.errno or 0)
        raise SessionFailed from error

    def _seal_chunks(self, chunks: list[int]) -> int:
        """Seal chunks, as many as the buffer has places for; how many bytes were read. Neighbours are read in one go."""
        pack = self._room()
        place = self._place
        chunks = chunks[: CHUNKS_PER_PACK - place]
        reads = []
        for index, count in _neighbours(chunks):
            reads.append((self._packs.data(pack, place + index, count), chunks[index] * CHUNK_BYTES))
        try:
            self._backing.read_all(reads)
        except OSError as error:
            self._fail_reading(error)
        for index, chunk in enumerate(chunks):
            if self._place != place + index:
                self._packs.data(pack, self._place)[:] = self._packs.data(pack, place + index)
            self._seal(chunk, pack)
        self._hand_over_if_full()
        return len(chunks) * CHUNK_BYTES

    def _seal(self, chunk: int, pack: int) -> None:
        """Fix the bytes of a chunk that were read to the next place of `pack`."""
        shared = self._shared
        data = self._packs.data(pack, self._place)
        self._locks.acquire(LOCK_CHUNKS + chunk)
        try:
            preimages = chain(shared, chunk)
            for preimage in preimages:
                self._lay_over(data, preimage)
            is_zero = self._is_zero(pack)
            self._packs.append(pack, Entry(Kind.ZERO if is_zero else Kind.DATA, chunk, 1))
            shared.chunks[chunk] = SEALED
            if preimages:
                self._slots.free_all(preimages)
        finally:
            self._locks.release(LOCK_CHUNKS + chunk)
        self._place += not is_zero
        shared.words[Word.SWEPT_CHUNKS] += 1

    def _lay_over(self, data: memoryview, preimage: Preimage) -> None:
        target = data[preimage.first * UNIT_BYTES : (preimage.first + preimage.units) * UNIT_BYTES]
        if preimage.is_zero:
            target[:] = bytes(len(target))
        elif preimage.is_spilled:
            offset = (preimage.slot - FIRST_SPILL) * UNIT_BYTES
            try:
                count = os.preadv(self._spill, [target], offset)
            except OSError as error:
                self._shared.fail(Failure.SPILL_ERROR, error.errno or errno.EIO)
                raise SessionFailed from error
            if count != len(target):
                self._shared.fail(Failure.SPILL_ERROR, errno.EIO)
                raise SessionFailed
        else:
            target[:] = self._shared.page(preimage.slot, preimage.units)

    def _is_zero(self, pack: int) -> bool:
        start = HEADER_BYTES + pack * BUFFER_BYTES + DIRECTORY_BYTES + self._place * CHUNK_BYTES
        return self._packs.map.find(_ZERO_CHUNK, start, start + CHUNK_BYTES) == start

    def _mark_sealed(self, first: int, count: int) -> None:
        for chunk in range(first, first + count):
            if not self._shared.is_sealed(chunk):
                self._locks.acquire(LOCK_CHUNKS + chunk)
                self._shared.chunks[chunk] = SEALED
                self._locks.release(LOCK_CHUNKS + chunk)

    def _room(self) -> int:
        """A buffer being filled with a place and an entry free. Waits for one while the store is slow."""
        if self._pack is None:
            free = self._packs.packs_in(State.FREE)
            while not free:
                self._check()
                time.sleep(_FREE_POLL_SECONDS)
                free = self._packs.packs_in(State.FREE)
            self._pack = free[0]
            self._place = 0
            self._packs.open(self._pack)
        return self._pack

    def _hand_over_if_full(self) -> None:
        assert self._pack is not None
        room = ENTRIES_MAX - self._packs.entry_count(self._pack)
        if self._place == CHUNKS_PER_PACK or room < SLICES_MAX * SLICE_CHUNKS:
            self._hand_over()

    def _hand_over(self) -> None:
        assert self._pack is not None
        self._packs.set_state(self._pack, State.READY)
        self._pack = None


def _neighbours(chunks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(index, count) of each run of consecutive chunks."""
    first = 0
    for index in range(1, len(chunks) + 1):
        if index == len(chunks) or chunks[index] != chunks[index - 1] + 1:
            yield first, index - first
            first = index
