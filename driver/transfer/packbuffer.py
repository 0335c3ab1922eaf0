"""Sealed chunks on their way to the store: memory that the sweeper fills and a sender empties. Standard library only.

The memory is a memfd of one header page and `packs` buffers of 16 KiB directory + 16 MiB data:

    header     u64 words, by name in `Header`
    directory  u64 state, u64 entries, then one u64 an entry: kind << 62 | (count - 1) << 32 | first chunk
    data       256 places of 64 KiB; the n-th DATA entry of the directory lies in the n-th place

A buffer goes FREE -> FILLING -> READY (sweeper) -> FREE (sender). Each word is stored by one process at a time, as one
aligned native store: a reader sees the old or the new one. The store of `entries` is what seals a chunk: an entry that it
counts has its final bytes; the sweeper's successor goes on from there. READY buffers whose sender died are sent again.

OFD record lock (fcntl(2)) on byte 0: held by the sender for its life, so that its release proves its death.
"""

from __future__ import annotations

import enum
import mmap
import os
import sys
from dataclasses import dataclass
from typing import Final

from driver.core.errors import Internal
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_PACK, PACK_BYTES

HEADER_BYTES: Final = 4096
DIRECTORY_BYTES: Final = 16 * 1024
BUFFER_BYTES: Final = DIRECTORY_BYTES + PACK_BYTES
ENTRIES_MAX: Final = DIRECTORY_BYTES // 8 - 2
RUN_MAX: Final = 1 << 30
SENDER_LOCK_BYTE: Final = 0


class Header(enum.IntEnum):
    """Words of the header page; whoever stores it stands behind each."""

    SWEEP_DONE = 0  # sweeper: every chunk that the parent lacks is in a buffer that is READY or was
    SWEPT_CHUNKS = 1  # sweeper, before SWEEP_DONE: how many those are
    UPLOADED_BYTES = 8  # sender, from here on: bytes of objects that the store has confirmed
    REQUESTS = 9  # requests sent, retries and what it took to begin included
    STORED_CHUNKS = 10  # chunks confirmed, zero ones not counted
    ZERO_CHUNKS = 11
    RETRIES = 12
    STORED_BYTES = 13  # uncompressed bytes of the stored chunks
    SAME_CHUNKS = 14  # chunks that the parent turned out to have
    HEARD_MILLISECONDS = 15  # when pending.json was written; see driver.transfer.silence


class State(enum.IntEnum):
    FREE = 0
    FILLING = 1
    READY = 2


class Kind(enum.IntEnum):
    DATA = 0
    ZERO = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """`count` chunks from `chunk` on; DATA entries count 1, ZERO entries 1 to 2**30."""

    kind: Kind
    chunk: int
    count: int


def memory_bytes(packs: int) -> int:
    """Size of the memory for `packs` buffers."""
    return HEADER_BYTES + packs * BUFFER_BYTES


def note_begun(fd: int, at: float, requests: int) -> None:
    """Note in new memory that pending.json was written at `at`, in seconds of CLOCK_BOOTTIME, and how many requests it took
    to begin."""
    os.pwrite(fd, round(at * 1000).to_bytes(8, sys.byteorder), Header.HEARD_MILLISECONDS * 8)
    os.pwrite(fd, requests.to_bytes(8, sys.byteorder), Header.REQUESTS * 8)


class PackBuffers:
    """The mapped memory. For the sweeper and the sender processes, one thread each for a given buffer."""

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        self.count = (size - HEADER_BYTES) // BUFFER_BYTES
        self.map = mmap.mmap(fd, size)
        self._bytes = memoryview(self.map)
        self._words = self._bytes.cast("Q")

    def get(self, word: Header) -> int:
        """A word of the header."""
        return self._words[word]

    def set(self, word: Header, value: int) -> None:
        """Store a word of the header, by the one process whose word it is."""
        self._words[word] = value

    def _word(self, pack: int) -> int:
        return (HEADER_BYTES + pack * BUFFER_BYTES) // 8

    def state(self, pack: int) -> State:
        """A buffer's state."""
        return State(self._words[self._word(pack)])

    def set_state(self, pack: int, state: State) -> None:
        """Hand a buffer on: whoever the new state belongs to may use it at once."""
        self._words[self._word(pack)] = state

    def packs_in(self, state: State) -> list[int]:
        """The buffers of a state, by number."""
        return [pack for pack in range(self.count) if self._words[self._word(pack)] == state]

    def open(self, pack: int) -> None:
        """FREE -> FILLING, with an empty directory. Sweeper only."""
        self._words[self._word(pack) + 1] = 0
        self.set_state(pack, State.FILLING)

    def entry_count(self, pack: int) -> int:
        """How many entries a buffer's directory has."""
        return self._words[self._word(pack) + 1]

    def entries(self, pack: int) -> list[Entry]:
        """The directory, in the order of its making."""
        first = self._word(pack) + 2
        found = []
        for raw in self._words[first : first + self.entry_count(pack)]:
            found.append(Entry(Kind(raw >> 62), raw & 0xFFFFFFFF, (raw >> 32 & (RUN_MAX - 1)) + 1))
        return found

    def append(self, pack: int, entry: Entry) -> None:
        """Seal: add an entry, at most ENTRIES_MAX. A DATA entry's bytes must be in their final place. Sweeper only."""
        base = self._word(pack)
        count = self._words[base + 1]
        if count >= ENTRIES_MAX:
            raise Internal(f"pack buffer {pack} has no room for another entry")
        self._words[base + 2 + count] = entry.kind << 62 | (entry.count - 1) << 32 | entry.chunk
        self._words[base + 1] = count + 1

    def data(self, pack: int, place: int, chunks: int = 1) -> memoryview:
        """The bytes of `chunks` places from `place` on, page-aligned; `place` + `chunks` is at most 256."""
        start = HEADER_BYTES + pack * BUFFER_BYTES + DIRECTORY_BYTES + place * CHUNK_BYTES
        return self._bytes[start : start + chunks * CHUNK_BYTES]

    def places(self, pack: int) -> int:
        """How many places hold sealed chunks; CHUNKS_PER_PACK means full."""
        return sum(1 for entry in self.entries(pack) if entry.kind is Kind.DATA)

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self.map.close()


assert PACK_BYTES == CHUNKS_PER_PACK * CHUNK_BYTES
