"""What a write goes through between its receipt and its answer: admission, capture, the write itself, its result.

    ADMITTED = 1, look at the gate -> capture if a session runs -> dirty -> write -> RESULT = DONE | errno -> ADMITTED = 0

Discards and zeroings destroy pre-images as writes do and go the same way, but never wait for room in the buffer. A request
that has its RESULT already is not done again. One object a request slot, used by the slot's thread.
"""

from __future__ import annotations

import errno
from typing import Final

from driver.core.sizes import CHUNK_BYTES
from driver.fuse.protocol import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)
from driver.volume import gate
from driver.volume.backing import Backing
from driver.volume.capture import Capture, Parked
from driver.volume.layout import DONE, Shared, SlotWord, Word
from driver.volume.preimages import Locks

_ADMITTED: Final = SlotWord.ADMITTED.value
_RESULT: Final = SlotWord.RESULT.value
_GATE: Final = Word.GATE.value
_SESSION: Final = Word.SESSION.value
_LAST_SESSION: Final = Word.LAST_SESSION.value
_ERRNO: Final = 0xFFFF
_CHUNK_SHIFT: Final = CHUNK_BYTES.bit_length() - 1


class WritePath:
    """Writes of request slot `number`, whose head page is `slot_words`. `spill` is the spill file's descriptor."""

    def __init__(
        self, shared: Shared, number: int, slot_words: memoryview, backing: Backing, locks: Locks, spill: int | None
    ) -> None:
        self._shared = shared
        self._header = shared.words
        self._words = slot_words
        self._dirty = shared.dirty
        self._backing = backing
        self._locks = locks
        self._capture = Capture(shared, number, slot_words, backing, locks, spill)

    def write(self, offset: int, data: memoryview, *, may_wait: bool = False) -> int:
        """Write the page-aligned `data`; the errno, 0 when all of it is written. With `may_wait` it raises Parked where
        the write is to be tried again later, without `may_wait`."""
        words = self._words
        if words[_RESULT]:
            return words[_RESULT] & _ERRNO
        header = self._header
        words[_ADMITTED] = 1
        if header[_GATE]:
            self._admit()
        number = 0
        try:
            if header[_SESSION]:
                self._capture.before_write(offset, len(data), may_wait=may_wait)
            first, last = offset >> _CHUNK_SHIFT, (offset + len(data) - 1) >> _CHUNK_SHIFT
            dirty = self._dirty[header[_LAST_SESSION] & 1]
            dirty[first] = 1
            if last != first:
                dirty[first : last + 1] = b"\x01" * (last + 1 - first)
            self._backing.write(data, offset)
        except OSError as error:
            number = error.errno or errno.EIO
        except Parked:
            words[_ADMITTED] = 0
            raise
        words[_RESULT] = DONE | number
        words[_ADMITTED] = 0
        return number

    def zero(self, offset: int, length: int, mode: int) -> int:
        """Discard or zero a range as fallocate's `mode` says; the errno, 0 when done, EOPNOTSUPP for other modes.

        A thick volume keeps its blocks: a hole punched into it is zeroed instead.
        """
        wanted = mode & ~FALLOC_FL_KEEP_SIZE
        if wanted not in (FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE):
            return errno.EOPNOTSUPP
        words = self._words
        if words[_RESULT]:
            return words[_RESULT] & _ERRNO
        self._admit()
        number = 0
        try:
            if self._header[_SESSION]:
                self._capture.before_write(offset, length)
            first, last = offset >> _CHUNK_SHIFT, (offset + length - 1) >> _CHUNK_SHIFT
            self._dirty[self._header[_LAST_SESSION] & 1][first : last + 1] = b"\x01" * (last + 1 - first)
            punch = wanted == FALLOC_FL_PUNCH_HOLE and bool(self._header[Word.THIN])
            self._backing.zero(offset, length, punch=punch)
        except OSError as error:
            number = error.errno or errno.EIO
        words[_RESULT] = DONE | number
        words[_ADMITTED] = 0
        words[SlotWord.DISCARD_BYTES] += length
        return number

    def _admit(self) -> None:
        self._words[_ADMITTED] = 1
        while self._header[_GATE]:
            self._words[_ADMITTED] = 0
            gate.wait_until_open(self._shared, self._locks)
            self._words[_ADMITTED] = 1
