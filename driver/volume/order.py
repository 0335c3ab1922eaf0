"""In which order a sweep visits the chunks: first those that were captured, then the others by position.

A captured chunk holds memory until it is sealed, and is likely to be written again: sealed, it costs its writers nothing
any more. While memory is ample the captured chunks come in the order of their slots, roughly that of their capture; when
it fills, those with most slots come first. The sweeper's thread only. What is found here are hints: any pending chunk may
be sealed at any time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Set
from typing import Final

from driver.core.sizes import CHUNKS_PER_REGION
from driver.volume import changes
from driver.volume.layout import LOCK_CHUNKS, OWNERS_AT, PUBLISHED, SEALED, Shared, Word
from driver.volume.preimages import Locks, spans

_COUNTED: Final = 256
"""Chunks taken from one count of all slots, which takes a few milliseconds."""
_PUBLISHED: Final = bytes([PUBLISHED])


class Order:
    """The order for a session whose volume had `chunks` chunks at the cut."""

    def __init__(self, shared: Shared, locks: Locks, chunks: int) -> None:
        self._shared = shared
        self._locks = locks
        self._chunks = chunks
        self._cursor = 0
        self._slot = 0
        self._counted: list[int] = []

    def next(self, taken: Set[int] = frozenset()) -> int | None:
        """The pending chunk to seal next, but none that is `taken` already. None if there is none, or if the next one is not
        known before those are sealed."""
        chunk = self.captured(taken)
        return self.by_position(taken) if chunk is None else chunk

    def captured(self, taken: Set[int] = frozenset()) -> int | None:
        """The pending chunk that was captured first, roughly, and is not `taken`; None if none was."""
        shared = self._shared
        used = (shared.words[Word.USED], shared.words[Word.SPILL_USED])
        for first, end in itertools.compress(spans(shared), used):
            slot = self._slot if first <= self._slot < end else first
            for start, stop in (slot, end), (first, slot):
                while (found := shared.map.find(_PUBLISHED, OWNERS_AT + start, OWNERS_AT + stop)) >= 0:
                    start = found - OWNERS_AT + 1
                    chunk = shared.notes[(start - 1) * 4]
                    if self._is_captured(chunk) and chunk not in taken:
                        self._slot = start
                        return chunk
        return None

    def most_captured(self) -> int | None:
        """A pending chunk that holds many slots in memory: its seal frees them."""
        for _ in range(2):
            while self._counted:
                chunk = self._counted.pop()
                if self._is_captured(chunk):
                    return chunk
            top = self._shared.words[Word.MEMORY_TOP]
            counted = Counter(self._shared.notes[: top * 4 : 4].tolist())
            self._counted = [chunk for chunk, _ in reversed(counted.most_common(_COUNTED))]
        return None

    def _is_captured(self, chunk: int) -> bool:
        return chunk < self._chunks and not self._shared.is_sealed(chunk) and self._shared.chunks[chunk] != 0

    def by_position(self, taken: Set[int] = frozenset()) -> int | None:
        """The first chunk that is to be sealed and not `taken`; None if all are sealed, or taken to the end of the region.
        Finished regions are released on the way."""
        shared = self._shared
        while self._cursor < self._chunks:
            region = self._cursor // CHUNKS_PER_REGION
            end = min((region + 1) * CHUNKS_PER_REGION, self._chunks)
            if shared.regions[region]:
                self._cursor = end
                continue
            chunks = shared.chunks
            chunk = changes.next_pending(shared, self._cursor, end)
            while chunk < end and (chunks[chunk] == SEALED or chunk in taken):
                chunk = changes.next_pending(shared, chunk + 1, end)
            if not taken:
                self._cursor = chunk
            if chunk < end:
                return chunk
            if taken:
                return None
            self._release_region(region)
        return None

    def _release_region(self, region: int) -> None:
        """Every chunk of the region is sealed: one byte says so from now on."""
        start = LOCK_CHUNKS + region * CHUNKS_PER_REGION
        self._locks.acquire(start, CHUNKS_PER_REGION)
        self._shared.regions[region] = 1
        self._shared.release_chunks(region)
        self._locks.release(start, CHUNKS_PER_REGION)
