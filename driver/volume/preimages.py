"""Pre-image slots: who owns which, and the chains that lead from a chunk to what was captured of it.

Pure memory: no lock is taken here but LOCK_PREIMAGES, which nobody holds while waiting for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from driver.volume.layout import (
    FIRST_SPILL,
    FIRST_ZERO,
    FREE,
    LOCK_CHUNKS,
    LOCK_PREIMAGES,
    OWNERS_AT,
    PUBLISHED,
    SEALED,
    SLOTS_MAX,
    ZERO_MARKS,
    Shared,
    Word,
)

_SESSION: Final = Word.SESSION.value
_USED: Final = Word.USED.value
_MEMORY_LIMIT: Final = Word.MEMORY_LIMIT.value
_BATCH: Final = 32
_PIECE: Final = 1024
_FREE_RUN: Final = re.compile(rb"\0+")
_SHORT: Final = 8 * _BATCH * SLOTS_MAX
"""When fewer slots than this are free, they are reserved one by one."""


class Locks(Protocol):
    """What the block path needs of `RecordLocks`."""

    def acquire(self, start: int, length: int = 1) -> None: ...

    def try_acquire(self, start: int, length: int = 1) -> bool: ...

    def release(self, start: int, length: int = 1) -> None: ...


class Preimage(NamedTuple):
    """`units` units from unit `first` of a chunk on, kept in the consecutive slots from `slot` on."""

    slot: int
    first: int
    units: int

    @property
    def is_zero(self) -> bool:
        return self.slot >= FIRST_ZERO

    @property
    def is_spilled(self) -> bool:
        return FIRST_SPILL <= self.slot < FIRST_ZERO

    @property
    def slots(self) -> int:
        """How many slots it holds: a zero mark is one, however many units it stands for."""
        return 1 if self.slot >= FIRST_ZERO else self.units


def chain(shared: Shared, chunk: int) -> list[Preimage]:
    """What was captured of a chunk, newest first. Complete under the chunk's lock; without it, it may end early."""
    found = []
    link = shared.chunks[chunk]
    notes = shared.notes
    while link and link != SEALED:
        base = (link - 1) * 4
        if notes[base] != chunk:
            break
        extent = notes[base + 2]
        found.append(Preimage(link - 1, extent & 0xFF, extent >> 8))
        link = notes[base + 1]
    return found


def captured(shared: Shared, chunk: int) -> int:
    """The mask of a chunk's units that are in its chain. In the path of every write of a session: no objects, no walk."""
    link = shared.chunks[chunk]
    if not link or link == SEALED:
        return 0
    base = (link - 1) * 4
    notes = shared.notes
    return notes[base + 3] if notes[base] == chunk else 0


def publish(shared: Shared, chunk: int, slot: int, first: int, units: int) -> None:
    """Hang a filled pre-image, as in `Preimage`, into its chunk's chain. The chunk's lock is held. The store of the chunk's
    word is what counts."""
    base = slot * 4
    notes = shared.notes
    chunks = shared.chunks
    link = chunks[chunk]
    mask = ((1 << units) - 1) << first
    if units > 1 and slot < FIRST_ZERO:
        for other in range(base + 4, base + units * 4, 4):
            notes[other] = chunk
    notes[base] = chunk
    notes[base + 1] = link
    notes[base + 2] = first | units << 8
    notes[base + 3] = notes[(link - 1) * 4 + 3] | mask if link else mask
    chunks[chunk] = slot + 1
    if units == 1 or slot >= FIRST_ZERO:
        shared.owners[slot] = PUBLISHED
    else:
        shared.owners[slot : slot + units] = bytes([PUBLISHED]) * units


class Slots:
    """Reserves and frees slots for one thread. `owner` is 1 + its request slot.

    Single slots, which most writes need, are reserved a batch ahead, so that most captures need no lock for it; batches
    are for a session, and not taken when memory is short.
    """

    def __init__(self, shared: Shared, locks: Locks, owner: int) -> None:
        self._shared = shared
        self._locks = locks
        self._mark = bytes([owner])
        self._hint = 0
        self._ahead: list[int] = []
        self._session = 0

    def reserve(self, count: int) -> int | None:
        """The first of `count` (1 to 16) consecutive slots, in memory or else in the spill file; None: all is full."""
        session = self._shared.words[_SESSION]
        if self._session != session:
            self._session = session
            self._ahead = []
        if count > 1:
            return self._reserve(count)
        if self._ahead:
            return self._ahead.pop()
        if self._is_ample():
            first = self._reserve(_BATCH)
            if first is not None and first < FIRST_SPILL:
                self._ahead = list(range(first + _BATCH - 1, first, -1))
                return first
            if first is not None:
                self.free(first, _BATCH)
        return self._reserve(1)

    def _is_ample(self) -> bool:
        return self._shared.words[_USED] + _SHORT < self._shared.words[_MEMORY_LIMIT]

    def _reserve(self, count: int) -> int | None:
        words = self._shared.words
        self._locks.acquire(LOCK_PREIMAGES)
        try:
            limit = words[Word.MEMORY_LIMIT]
            if words[Word.USED] + count <= limit:
                slot = self._find(count, 0, limit)
                if slot is not None:
                    words[Word.USED] = used = words[Word.USED] + count
                    if used > words[Word.PEAK]:
                        words[Word.PEAK] = used
                    return slot
            limit = words[Word.SPILL_LIMIT]
            if words[Word.SPILL_USED] + count <= limit:
                slot = self._find(count, FIRST_SPILL, FIRST_SPILL + limit)
                if slot is not None:
                    words[Word.SPILL_USED] += count
                    return slot
            return None
        finally:
            self._locks.release(LOCK_PREIMAGES)

    def reserve_zero_mark(self) -> int | None:
        """A zero mark's slot; None: all are in use."""
        self._locks.acquire(LOCK_PREIMAGES)
        try:
            return self._find(1, FIRST_ZERO, FIRST_ZERO + ZERO_MARKS)
        finally:
            self._locks.release(LOCK_PREIMAGES)

    def _find(self, count: int, first: int, end: int) -> int | None:
        wanted = bytes(count)
        start = self._hint if first <= self._hint < end else first
        found = self._shared.map.find(wanted, OWNERS_AT + start, OWNERS_AT + end)
        if found < 0:
            found = self._shared.map.find(wanted, OWNERS_AT + first, OWNERS_AT + end)
            if found < 0:
                return None
        slot = found - OWNERS_AT
        self._shared.owners[slot : slot + count] = self._mark * count
        self._hint = slot + count
        return slot

    def free(self, slot: int, count: int) -> None:
        """Give back `count` consecutive slots of one kind."""
        words = self._shared.words
        if count == 1 and slot < FIRST_SPILL and len(self._ahead) < _BATCH and self._is_ample():
            self._ahead.append(slot)
            return
        self._locks.acquire(LOCK_PREIMAGES)
        try:
            self._shared.owners[slot : slot + count] = bytes(count)
            if slot < FIRST_SPILL:
                words[Word.USED] -= count
            elif slot < FIRST_ZERO:
                words[Word.SPILL_USED] -= count
        finally:
            self._locks.release(LOCK_PREIMAGES)

    def free_all(self, preimages: list[Preimage]) -> None:
        """Give back the slots of a sealed chunk."""
        shared = self._shared
        words = shared.words
        self._locks.acquire(LOCK_PREIMAGES)
        try:
            for preimage in preimages:
                shared.owners[preimage.slot : preimage.slot + preimage.slots] = bytes(preimage.slots)
                if preimage.slot < FIRST_SPILL:
                    words[Word.USED] -= preimage.units
                elif preimage.slot < FIRST_ZERO:
                    words[Word.SPILL_USED] -= preimage.units
        finally:
            self._locks.release(LOCK_PREIMAGES)


def spans(shared: Shared) -> tuple[tuple[int, int], ...]:
    """(first, end) of the slots that may be in use: in memory, in the spill file, zero marks."""
    words = shared.words
    return (
        (0, words[Word.MEMORY_TOP]),
        (FIRST_SPILL, FIRST_SPILL + words[Word.SPILL_LIMIT]),
        (FIRST_ZERO, FIRST_ZERO + ZERO_MARKS),
    )


def _marked(shared: Shared, mark: int) -> Iterator[int]:
    wanted = bytes([mark])
    for first, end in spans(shared):
        found = shared.map.find(wanted, OWNERS_AT + first, OWNERS_AT + end)
        while found >= 0:
            yield found - OWNERS_AT
            found = shared.map.find(wanted, found + 1, OWNERS_AT + end)


def recover_reserved(shared: Shared, locks: Locks, owners: range) -> None:
    """Free what dead threads reserved and did not publish; mark what they published. `owners` are 1 + their slots."""
    for owner in owners:
        for slot in _marked(shared, owner):
            chunk = shared.notes[slot * 4]
            locks.acquire(LOCK_CHUNKS + chunk)
            locks.acquire(LOCK_PREIMAGES)
            if shared.owners[slot] == owner:  # else a seal has freed it meanwhile, and somebody may have it
                held = any(p.slot <= slot < p.slot + p.slots for p in chain(shared, chunk))
                shared.owners[slot] = PUBLISHED if held else FREE
            locks.release(LOCK_PREIMAGES)
            locks.release(LOCK_CHUNKS + chunk)
    recount(shared, locks)


def recover_sealed(shared: Shared, locks: Locks) -> None:
    """Free the published slots of sealed chunks, which a sweeper that died did not come to."""
    for slot in _marked(shared, PUBLISHED):
        if shared.is_sealed(shared.notes[slot * 4]):
            shared.owners[slot] = FREE
    recount(shared, locks)


def recount(shared: Shared, locks: Locks) -> None:
    """Set USED and SPILL_USED to what the owners say, after a death in the middle of a change."""
    locks.acquire(LOCK_PREIMAGES)
    memory = shared.words[Word.MEMORY_TOP]
    spill = shared.words[Word.SPILL_LIMIT]
    shared.words[Word.USED] = memory - bytes(shared.owners[:memory]).count(FREE)
    spilled = bytes(shared.owners[FIRST_SPILL : FIRST_SPILL + spill])
    shared.words[Word.SPILL_USED] = spill - spilled.count(FREE)
    locks.release(LOCK_PREIMAGES)


def resize(shared: Shared, locks: Locks, session: str, slots: int) -> None:
    """Let the session hold `slots` slots in memory from now on; what it holds beyond, it gives back as chunks are sealed.

    Pages of free slots beyond go back to the kernel: at each call, those that have become free since. A few MiB at a time,
    because captures wait meanwhile. Nothing happens if another session runs, or none.
    """
    words = shared.words
    if words[Word.MEMORY_LIMIT] == words[Word.MEMORY_TOP] == slots:
        return
    with _preimages_locked(locks):
        if shared.session_id() != session:
            return
        words[Word.MEMORY_TOP] = top = max(words[Word.MEMORY_TOP], slots)
        words[Word.MEMORY_LIMIT] = slots
    for start in range(slots + (top - slots - 1) // _PIECE * _PIECE, slots - 1, -_PIECE):
        with _preimages_locked(locks):
            if shared.session_id() != session:
                return
            piece = bytes(shared.owners[start : min(start + _PIECE, top)])
            for run in _FREE_RUN.finditer(piece):
                shared.release_pages(start + run.start(), len(run[0]))
            if words[Word.MEMORY_TOP] == start + len(piece):
                words[Word.MEMORY_TOP] = start + len(piece.rstrip(b"\0"))


@contextmanager
def _preimages_locked(locks: Locks) -> Iterator[None]:
    locks.acquire(LOCK_PREIMAGES)
    try:
        yield
    finally:
        locks.release(LOCK_PREIMAGES)
