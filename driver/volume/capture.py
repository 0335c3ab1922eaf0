"""Save what a write is about to overwrite, while its chunk is neither sealed nor stored.

`before_write` runs in the thread that does the write, between its admission and the write itself:

1. no session, or the parent has the chunk, or it is sealed, or its units are captured: nothing to do, and no lock was taken;
2. else slots are reserved (no lock is held: a seal may be what frees some), the chunk is locked, and if it is still
   pending, each unit not yet captured is read into a slot and published. A unit covered in part is captured whole.

Chunks are visited in ascending order, one lock at a time. Words captured without a lock may be stale only in one way: the
chunk was sealed meanwhile, and then no capture is due (docs/datapath.md has the interleavings).
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
from collections.abc import Iterator
from typing import Final

from driver.core.sizes import (
    CHUNK_BYTES,
    CHUNKS_PER_REGION,
    MIB,
    UNIT_BYTES,
    UNITS_PER_CHUNK,
)
from driver.host import files
from driver.volume.backing import Backing
from driver.volume.layout import (
    FIRST_SPILL,
    LOCK_CHUNKS,
    LOCK_SPILL,
    PAGES_AT,
    SEALED,
    Failure,
    OnFull,
    Shared,
    SlotWord,
    Word,
)
from driver.volume.preimages import Locks, Slots, captured, publish

THROTTLE_SECONDS_MAX: Final = 0.02
_THROTTLE_SECONDS_MIN: Final = 0.0005
_SPILL_PIECE: Final = 16 * MIB // UNIT_BYTES
_ZERO_UNIT: Final = bytes(UNIT_BYTES)
_FAILED: Final = Word.FAILED.value
_USED: Final = Word.USED.value
_MEMORY_LIMIT: Final = Word.MEMORY_LIMIT.value
_SESSION_BYTES: Final = Word.SESSION_BYTES.value
_PARENT_CHUNKS: Final = Word.PARENT_CHUNKS.value
_LAST_SESSION: Final = Word.LAST_SESSION.value
_PREIMAGES: Final = SlotWord.PREIMAGES.value
_CHUNK_SHIFT: Final = CHUNK_BYTES.bit_length() - 1
_UNIT_SHIFT: Final = UNIT_BYTES.bit_length() - 1
_REGION_SHIFT: Final = CHUNKS_PER_REGION.bit_length() - 1
_STORES_ARE_SEEN_IN_ORDER: Final = platform.machine() in ("x86_64", "i686")
"""Elsewhere a note may be read before it arrived: one looks at it under the chunk's lock only."""


class Parked(Exception):
    """A first touch is to wait for `seconds` before it takes of a nearly full buffer. Nothing of the write was done."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"parked for {seconds:.3f} s")
        self.seconds = seconds


class SpillFailed(Exception):
    """The spill file cannot be written; `number` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Capture:
    """The capturing side of one request slot's thread. `spill` is a descriptor of the spill file, or None."""

    def __init__(
        self, shared: Shared, slot: int, slot_words: memoryview, backing: Backing, locks: Locks, spill: int | None
    ) -> None:
        self._shared = shared
        self._words = slot_words
        self._backing = backing
        self._locks = locks
        self._spill = spill
        self._slots = Slots(shared, locks, slot + 1)
        self._scratch: memoryview | None = None
        self._spill_errno = 0

    def before_write(self, offset: int, length: int, *, may_wait: bool = False) -> None:
        """Capture what [offset, offset + length) is about to lose. A session is running. A capture that cannot be made
        fails the session, never the write. With `may_wait` it raises Parked where the memory is full and throttled."""
        shared = self._shared
        regions = shared.regions
        chunks = shared.chunks
        words = shared.words
        end = min(offset + length, words[_SESSION_BYTES])
        parent_chunks = words[_PARENT_CHUNKS]
        written = shared.dirty[~words[_LAST_SESSION] & 1]
        for chunk in range(offset >> _CHUNK_SHIFT, ((end - 1) >> _CHUNK_SHIFT) + 1):
            if chunk < parent_chunks and not written[chunk]:
                continue
            if chunks[chunk] == SEALED or regions[chunk >> _REGION_SHIFT]:
                continue
            start = chunk << _CHUNK_SHIFT
            first = max(offset - start, 0) >> _UNIT_SHIFT
            count = ((min(end - start, CHUNK_BYTES) - 1) >> _UNIT_SHIFT) - first + 1
            wanted = ((1 << count) - 1) << first
            missing = wanted & ~captured(shared, chunk) if _STORES_ARE_SEEN_IN_ORDER else wanted
            if missing and not shared.words[_FAILED]:
                if missing == wanted:
                    self._capture(chunk, first, count, may_wait)
                else:
                    for first, count in runs(missing):
                        self._capture(chunk, first, count, may_wait)

    def _capture(self, chunk: int, first: int, count: int, may_wait: bool) -> None:
        """Capture a run of units, of which others may be capturing some."""
        slot = self._reserve(count, may_wait)
        kept = 0
        lock = LOCK_CHUNKS + chunk
        self._locks.acquire(lock)
        try:
            if not self._shared.is_sealed(chunk):  # else it was while a slot was looked for: nothing is to be kept
                if slot is None:
                    self._shared.fail(Failure.BUFFER_FULL, self._spill_errno)
                else:
                    kept = self._fill(chunk, first, count, slot)
        finally:
            self._locks.release(lock)
        if slot is not None and kept < count:
            self._slots.free(slot + kept, count - kept)

    def _reserve(self, count: int, may_wait: bool) -> int | None:
        words = self._shared.words
        if may_wait and words[_USED] + count > words[_MEMORY_LIMIT]:
            self._throttle(count)
        slot = self._slots.reserve(count)
        if slot is not None and slot < FIRST_SPILL:
            return slot
        while slot is not None and slot >= FIRST_SPILL and not self._allocate(slot + count - FIRST_SPILL):
            self._slots.free(slot, count)
            slot = self._slots.reserve(count)
        return slot

    def _allocate(self, units: int) -> bool:
        """Give the first `units` of the spill file their blocks, a piece at a time. If the disk has no room, the file ends
        where it is: False."""
        words = self._shared.words
        if units <= words[Word.SPILL_READY]:
            return True
        self._locks.acquire(LOCK_SPILL)
        try:
            ready = words[Word.SPILL_READY]
            if units <= ready:
                return True
            wanted = min(max(ready + _SPILL_PIECE, units), words[Word.SPILL_LIMIT])
            if wanted < units or self._spill is None:
                return False
            os.posix_fallocate(self._spill, ready * UNIT_BYTES, (wanted - ready) * UNIT_BYTES)
            words[Word.SPILL_READY] = wanted
            return True
        except OSError as error:
            self._spill_errno = error.errno or 0
            words[Word.SPILL_LIMIT] = words[Word.SPILL_READY]
            return False
        finally:
            self._locks.release(LOCK_SPILL)

    def _throttle(self, count: int) -> None:
        """Slow down a first touch when the memory is full, the more the fuller the spill file is. Raises Parked."""
        words = self._shared.words
        if words[Word.ON_FULL] != OnFull.THROTTLE:
            return
        limit = words[Word.SPILL_LIMIT]
        seconds = THROTTLE_SECONDS_MAX * (min(1.0, (words[Word.SPILL_USED] + count) / limit) if limit else 1.0)
        if seconds >= _THROTTLE_SECONDS_MIN:
            self._words[SlotWord.THROTTLED] += 1
            self._words[SlotWord.THROTTLED_NANOSECONDS] += int(seconds * 1e9)
            raise Parked(seconds)

    def _fill(self, chunk: int, first: int, count: int, slot: int) -> int:
        """Read and publish the units of a run that nobody captured meanwhile; how many leading slots were used.

        The chunk is locked and pending.
        """
        wanted = ((1 << count) - 1) << first
        missing = wanted & ~captured(self._shared, chunk)
        used = 0
        for unit, length in ((first, count),) if missing == wanted else runs(missing):
            target = slot + used
            try:
                is_zero = self._read(chunk, unit, length, target)
            except OSError as error:
                self._shared.fail(Failure.READ_ERROR, error.errno or 0)
                return used
            except SpillFailed as failed:
                self._shared.fail(Failure.SPILL_ERROR, failed.number)
                return used
            mark = self._slots.reserve_zero_mark() if is_zero else None
            if mark is None:
                used += length
            publish(self._shared, chunk, target if mark is None else mark, unit, length)
            self._words[_PREIMAGES] += length
        return used

    def _read(self, chunk: int, unit: int, count: int, slot: int) -> bool:
        """Read units of the backing file to where `slot` keeps them. Whether they are all zero."""
        offset = chunk * CHUNK_BYTES + unit * UNIT_BYTES
        if slot >= FIRST_SPILL:
            return self._read_to_spill(offset, count, slot)
        self._backing.read(self._shared.page(slot, count), offset)
        start = PAGES_AT + slot * UNIT_BYTES
        zeros = _ZERO_UNIT if count == 1 else bytes(count * UNIT_BYTES)
        return self._shared.map.find(zeros, start, start + count * UNIT_BYTES) == start

    def _read_to_spill(self, offset: int, count: int, slot: int) -> bool:
        if self._scratch is None:
            self._scratch = memoryview(mmap.mmap(-1, CHUNK_BYTES))
        buffer = self._scratch[: count * UNIT_BYTES]
        self._backing.read(buffer, offset)
        assert self._spill is not None  # else nothing of it could be allocated
        try:
            files.pwrite_all(self._spill, buffer, (slot - FIRST_SPILL) * UNIT_BYTES)
        except OSError as error:
            raise SpillFailed(error.errno or errno.EIO) from error
        self._words[SlotWord.SPILLED] += count
        return False


def runs(mask: int, width: int = UNITS_PER_CHUNK) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of ones in a mask of `width` bits, ascending."""
    first = 0
    while mask >> first:
        while not mask >> first & 1:
            first += 1
        count = 1
        while mask >> (first + count) & 1:
            count += 1
        yield first, count
        first += count
