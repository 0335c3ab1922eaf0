"""The memory that the processes of one volume share: where everything lies, and the mapped view of it.

One sparse memfd a volume, of one size for every volume (16 TiB, the largest budget); only touched pages exist.

    header    one page of u64 words, `Word`
    slots     128 request slots of one head page + 256 KiB of data
    dirty     two maps of a byte a chunk: 1 once it was written (`changes`); kept when a session ends
    regions   a byte a region: 1 once all its chunks are sealed (their words are released then)
    chunks    a u32 a chunk: 0 untouched, SEALED, else 1 + the pre-image slot that was published last
    owners    a byte a pre-image slot: 0 free, PUBLISHED, else 1 + the request slot that reserved it
    notes     four u32 a pre-image slot: chunk; in the first slot of a pre-image also next (a chain as in `chunks`),
              first unit | units << 8, and the mask of the units of this pre-image and of all that it leads to
    pages     4 KiB a pre-image slot in memory; aligned, so that O_DIRECT reads land in it

Pre-image slots are numbered through: those in memory, those in the spill file, then zero marks, which have no page.
Every word is published by one aligned native store; readers see the old value or the new one.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import uuid
from collections.abc import Iterator
from typing import Final

from driver.core.sizes import (
    CHUNK_BYTES,
    CHUNKS_PER_REGION,
    GIB,
    REGION_BYTES,
    TIB,
    UNIT_BYTES,
)
from driver.fuse.protocol import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, MAX_WRITE_BYTES, MESSAGE_HEAD_BYTES
from driver.host.kernel import fallocate

PAGE: Final = 4096
VERSION: Final = 6
"""Of what lies where; an engine takes over memory of its own version only."""

SLOTS_MAX: Final = 128
SLOT_BYTES: Final = PAGE + MAX_WRITE_BYTES
SLOT_MESSAGE: Final = PAGE - MESSAGE_HEAD_BYTES
"""Offset in a slot of the request's header; the data of a WRITE behind it is page-aligned."""

MEMORY_PREIMAGES: Final = GIB // UNIT_BYTES
SPILL_PREIMAGES: Final = 4 * GIB // UNIT_BYTES
ZERO_MARKS: Final = 1 << 20
FIRST_SPILL: Final = MEMORY_PREIMAGES
FIRST_ZERO: Final = FIRST_SPILL + SPILL_PREIMAGES
PREIMAGES: Final = FIRST_ZERO + ZERO_MARKS

_PIECE: Final = 4 << 20

CHUNKS_MAX: Final = 16 * TIB // CHUNK_BYTES
_REGIONS_MAX: Final = 16 * TIB // REGION_BYTES

SLOTS_AT: Final = PAGE
DIRTY_AT: Final = SLOTS_AT + SLOTS_MAX * SLOT_BYTES
REGIONS_AT: Final = DIRTY_AT + 2 * CHUNKS_MAX
CHUNKS_AT: Final = REGIONS_AT + _REGIONS_MAX
OWNERS_AT: Final = CHUNKS_AT + 4 * CHUNKS_MAX
NOTES_AT: Final = -(-(OWNERS_AT + PREIMAGES) // PAGE) * PAGE
PAGES_AT: Final = NOTES_AT + 16 * PREIMAGES
MEMORY_BYTES: Final = PAGES_AT + MEMORY_PREIMAGES * UNIT_BYTES

SEALED: Final = 0xFFFFFFFF
FREE: Final = 0
PUBLISHED: Final = 255

LOCK_CHUNKS: Final = 1 << 40
"""Lock byte of chunk 0; a chunk's lock guards its word and what its word leads to."""
LOCK_GATE: Final = 1 << 41
"""Held by whoever cuts or ends a session; a closed gate without a holder is open."""
LOCK_PREIMAGES: Final = LOCK_GATE + 1
"""Guards the change of `owners` from FREE, and the words USED, PEAK, SPILL_USED, MEMORY_LIMIT and MEMORY_TOP."""
LOCK_SESSION: Final = LOCK_GATE + 2
"""Held by whoever begins or ends a session, from first to last: one does not clear what the other has begun."""
LOCK_SPILL: Final = LOCK_GATE + 3
"""Held by whoever allocates a piece of the spill file."""
LOCK_SLOTS: Final = 1 << 42
"""Lock byte of request slot 0; a volume process holds those of its slots for its life: their release proves its death."""


class Word(enum.IntEnum):
    """Words of the header page."""

    SIZE_BYTES = 1
    GATE = 2  # 1: no write may begin
    SESSION = 3  # 0: none; else the number of the session that runs. The store that cuts
    LAST_SESSION = 4  # its lowest bit says which dirty map is the current one
    FAILED = 5  # `Failure` of the running session; 0: none
    ON_FULL = 6  # `OnFull`
    MEMORY_LIMIT = 7  # pre-image slots in memory that the budget allows; it may change while the session runs
    SPILL_LIMIT = 8
    USED = 9  # reserved or published pre-image slots in memory
    PEAK = 10
    SPILL_USED = 11
    SWEPT_CHUNKS = 12  # sweeper: chunks sealed
    SLOT_COUNT = 13  # request slots in use: all that may have something in hand
    THIN = 14
    CUT_NANOSECONDS = 15  # how long the gate was closed
    SWEEP_NANOSECONDS = 16  # monotonic; the sweeper's last sign of life
    FAILED_ERRNO = 17
    SESSION_BYTES = 18  # the volume's size at the cut; what lies beyond is not captured
    SESSION_ID = 19  # two words: the UUID of the session that SESSION numbers, high half first; 0 once it is cleared up
    SPILL_READY = 21  # units of the spill file whose blocks are allocated
    MEMORY_TOP = 22  # slots in memory at and behind it are free and without pages; at least MEMORY_LIMIT
    PARENT_CHUNKS = 23  # of chunks before it, the session reads only those that the frozen dirty map names
    BASE_KNOWN = 24  # 1: the dirty maps hold every write since the volume's base
    PENDING_CHUNKS = 25  # how many chunks the session has to read


class Failure(enum.IntEnum):
    """Why a session failed, as the block path or the sweeper saw it."""

    NONE = 0
    BUFFER_FULL = 1
    READ_ERROR = 2
    SPILL_ERROR = 3


class OnFull(enum.IntEnum):
    THROTTLE = 0
    FAIL = 1


class SlotWord(enum.IntEnum):
    """Words of a request slot's head page."""

    ADMITTED = 0  # 1 from before the gate was looked at until the write is done
    RESULT = 1  # 0: none; DONE | errno
    READ_BYTES = 3
    WRITE_BYTES = 5
    PREIMAGES = 6  # units captured, the volume's life long
    THROTTLED = 7
    THROTTLED_NANOSECONDS = 8
    LATENCY = 9  # nanoseconds of the last read or write, from its receipt to its answer
    REPLAYED = 10
    DISCARD_BYTES = 11
    LAST = 12  # monotonic nanoseconds of the last answer
    SPILLED = 13  # units captured into the spill file, the volume's life long
    READ_HISTOGRAM = 16  # 64 words: how many answers took below 2**n ns
    WRITE_HISTOGRAM = 80


DONE: Final = 1 << 32
HEADER_WORD: Final = SLOT_MESSAGE // 8
"""The slot word that holds the request's length and opcode; 0 while the slot is FREE."""


class Shared:
    """The mapped memory. One an OS process; its views may be used by all threads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.map = mmap.mmap(fd, MEMORY_BYTES)
        self.bytes = memoryview(self.map)
        self.words = self.bytes[:PAGE].cast("Q")
        self.dirty = tuple(self.bytes[at : at + CHUNKS_MAX] for at in (DIRTY_AT, DIRTY_AT + CHUNKS_MAX))
        self.regions = self.bytes[REGIONS_AT:CHUNKS_AT]
        self.chunks = self.bytes[CHUNKS_AT:OWNERS_AT].cast("I")
        self.owners = self.bytes[OWNERS_AT : OWNERS_AT + PREIMAGES]
        self.notes = self.bytes[NOTES_AT:PAGES_AT].cast("I")
        self.pages = self.bytes[PAGES_AT:]

    def slot(self, number: int) -> memoryview:
        """The 256 KiB + 4 KiB of a request slot."""
        start = SLOTS_AT + number * SLOT_BYTES
        return self.bytes[start : start + SLOT_BYTES]

    def slot_words(self, number: int) -> memoryview:
        """The head page of a request slot as u64 words."""
        start = SLOTS_AT + number * SLOT_BYTES
        return self.bytes[start : start + PAGE].cast("Q")

    def is_sealed(self, chunk: int) -> bool:
        """Whether writes to the chunk need no capture, or no more. Certain only under the chunk's lock if False."""
        words = self.words
        if chunk < words[Word.PARENT_CHUNKS] and not self.dirty[~words[Word.LAST_SESSION] & 1][chunk]:
            return True
        return bool(self.regions[chunk // CHUNKS_PER_REGION]) or self.chunks[chunk] == SEALED

    def page(self, preimage: int, count: int = 1) -> memoryview:
        """The pages of `count` consecutive pre-image slots in memory."""
        return self.pages[preimage * UNIT_BYTES : (preimage + count) * UNIT_BYTES]

    def fail(self, failure: Failure, number: int = 0) -> None:
        """Fail the running session, with an errno if there is one; the first reason stays. Any process."""
        if not self.words[Word.FAILED]:
            self.words[Word.FAILED_ERRNO] = number
            self.words[Word.FAILED] = failure

    def session_id(self) -> str | None:
        """The UUID of the session that runs."""
        return _session_id(self.words)

    def set_session_id(self, session: str) -> None:
        """Name the session that is about to run. `LOCK_SESSION` is held, and none runs."""
        number = uuid.UUID(session).int
        self.words[Word.SESSION_ID] = number >> 64
        self.words[Word.SESSION_ID + 1] = number & (1 << 64) - 1

    def is_named(self, session: str) -> bool:
        """Whether this session runs, or was the last to run and has not been cleared up after."""
        return _named(self.words) == uuid.UUID(session).int

    def forget_session_id(self) -> None:
        """Nothing is left of the last session. `LOCK_SESSION` is held, and none runs."""
        self.words[Word.SESSION_ID] = self.words[Word.SESSION_ID + 1] = 0

    def clear_session(self) -> None:
        """Give back all memory of the last session. Only while no session runs and nobody captures.

        In pieces: the kernel frees 200 MB in one go within 100 ms, which a volume process on the same processor waits for.
        """
        start = REGIONS_AT
        with contextlib.suppress(OSError):  # ENXIO: no page behind `start`
            while start < MEMORY_BYTES:
                start = os.lseek(self.fd, start, os.SEEK_DATA)
                punch(self.fd, start, min(_PIECE, MEMORY_BYTES - start))
                start += _PIECE

    def release_chunks(self, region: int) -> None:
        """Give back the memory of a region's chunk words; all its chunks' locks are held and its byte is set."""
        punch(self.fd, CHUNKS_AT + region * CHUNKS_PER_REGION * 4, CHUNKS_PER_REGION * 4)

    def release_pages(self, preimage: int, count: int) -> None:
        """Give back the memory of `count` consecutive pre-image slots, which are free; `LOCK_PREIMAGES` is held."""
        punch(self.fd, PAGES_AT + preimage * UNIT_BYTES, count * UNIT_BYTES)

    def close(self) -> None:
        for view in (self.words, *self.dirty, self.regions, self.chunks, self.owners, self.notes, self.pages, self.bytes):
            view.release()
        self.map.close()


def create_memory(size_bytes: int, thin: bool) -> int:
    """A new memfd laid out for a volume of `size_bytes` bytes that nobody serves yet (`session.set_slots`)."""
    fd = os.memfd_create("stillframe-volume", os.MFD_CLOEXEC)
    os.ftruncate(fd, MEMORY_BYTES)
    with _header(fd) as words:
        words[Word.SIZE_BYTES] = size_bytes
        words[Word.THIN] = int(thin)
    return fd


@contextlib.contextmanager
def _header(fd: int) -> Iterator[memoryview]:
    """The header's words alone, of a memory that is not mapped as a whole."""
    with mmap.mmap(fd, PAGE) as header, memoryview(header) as raw, raw.cast("Q") as words:
        yield words


def running_session(fd: int) -> str | None:
    """The UUID of the session that runs in a volume's memory."""
    with _header(fd) as words:
        return _session_id(words)


def volume_bytes(fd: int) -> int:
    """The size in bytes that a volume's memory says."""
    with _header(fd) as words:
        return int(words[Word.SIZE_BYTES])


def _session_id(words: memoryview) -> str | None:
    return str(uuid.UUID(int=_named(words))) if words[Word.SESSION] else None


def _named(words: memoryview) -> int:
    return int(words[Word.SESSION_ID]) << 64 | int(words[Word.SESSION_ID + 1])


def punch(fd: int, offset: int, length: int) -> None:
    """Release pages of a memfd: they read as zeros from then on."""
    fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length)


assert DIRTY_AT % PAGE == 0 and REGIONS_AT % PAGE == 0 and CHUNKS_AT % PAGE == 0 and OWNERS_AT % PAGE == 0
assert SLOTS_MAX < PUBLISHED and PREIMAGES < SEALED - 1
