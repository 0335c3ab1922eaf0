"""From a pack buffer to the pieces of a pack object, without copying what is stored as it is. One thread a call."""

from __future__ import annotations

import mmap
import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from driver.core.errors import Internal
from driver.core.sizes import CHUNK_BYTES, PACK_BYTES
from driver.transfer.chunks import Compressor, digest_of
from driver.transfer.packbuffer import Entry, Kind, PackBuffers
from driver.transfer.region import Chunk, Codec

_ARENAS: Final = 2


class Arenas:
    """Memory for compressed chunks: at most two packs' worth, given back to the system after each use."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[mmap.mmap | None] = queue.SimpleQueue()
        for _ in range(_ARENAS):
            self._free.put(None)

    def take(self) -> mmap.mmap:
        """Waits until one is free."""
        return self._free.get() or mmap.mmap(-1, PACK_BYTES)

    def give(self, arena: mmap.mmap) -> None:
        arena.madvise(mmap.MADV_DONTNEED)
        self._free.put(arena)


@dataclass(slots=True)
class Encoded:
    """A pack object to be: its pieces in order, and its chunks in the order of their bytes; `same` are chunks that the
    parent has. `release` after use."""

    pieces: list[memoryview]
    chunks: list[tuple[int, Chunk]]
    same: list[int]
    zero: list[Entry]
    size_bytes: int
    arenas: Arenas
    arena: mmap.mmap | None = None

    def release(self) -> None:
        self.pieces.clear()
        if self.arena is not None:
            self.arenas.give(self.arena)
            self.arena = None


def _nothing(chunk: int) -> bytes | None:
    return None


def encode(
    packs: PackBuffers, number: int, compressor: Compressor, arenas: Arenas,
    known: Callable[[int], bytes | None] = _nothing,
) -> Encoded:  # fmt: skip
    """Compress and hash what a READY buffer holds; `pack` of the chunks is 0. `known` tells the digest of a chunk that is
    stored already, if there is one. Releases the GIL most of the time. Raises what `known` raises."""
    made = Encoded([], [], [], [], 0, arenas)
    try:
        _fill(made, packs, number, compressor, known)
    except BaseException:
        made.release()
        raise
    return made


def _fill(
    made: Encoded, packs: PackBuffers, number: int, compressor: Compressor, known: Callable[[int], bytes | None]
) -> None:
    place = 0
    used = 0  # of the arena
    run = _Run(made.pieces)
    for entry in packs.entries(number):
        if entry.kind is Kind.ZERO:
            made.zero.append(entry)
            continue
        if entry.count != 1 or (place + 1) * CHUNK_BYTES > PACK_BYTES:
            raise Internal(f"pack buffer {number} has a directory that does not fit it")
        data = packs.data(number, place)
        digest = digest_of(data)
        if known(entry.chunk) == digest:
            made.same.append(entry.chunk)
            place += 1
            continue
        frame = compressor.compress(data)
        if frame is None:
            run.add_place(packs, number, place)
            codec, length = Codec.RAW, CHUNK_BYTES
        else:
            if made.arena is None:
                made.arena = made.arenas.take()
            codec, length = Codec.ZSTD, len(frame)
            made.arena[used : used + length] = frame
            run.add_arena(made.arena, used, length)
            used += length
        made.chunks.append((entry.chunk, Chunk(codec, 0, made.size_bytes, length, digest)))
        made.size_bytes += length
        place += 1
    run.end()


class _Run:
    """Neighbouring bytes of one source become one piece."""

    def __init__(self, pieces: list[memoryview]) -> None:
        self._pieces = pieces
        self._source: tuple[PackBuffers, int] | mmap.mmap | None = None
        self._start = self._end = 0

    def add_place(self, packs: PackBuffers, number: int, place: int) -> None:
        if isinstance(self._source, tuple) and self._end == place:
            self._end += 1
            return
        self.end()
        self._source, self._start, self._end = (packs, number), place, place + 1

    def add_arena(self, arena: mmap.mmap, offset: int, length: int) -> None:
        if self._source is arena:
            self._end += length
            return
        self.end()
        self._source, self._start, self._end = arena, offset, offset + length

    def end(self) -> None:
        if isinstance(self._source, tuple):
            packs, number = self._source
            self._pieces.append(packs.data(number, self._start, self._end - self._start))
        elif self._source is not None:
            self._pieces.append(memoryview(self._source)[self._start : self._end])
        self._source = None
