"""One request slot's thread: receive a FUSE request, do it, remember that it is done, answer, again.

    FREE -> RECEIVED -> DONE(result) -> FREE

The slot is FREE while its header word is 0; the kernel's copy into it makes it RECEIVED; RESULT makes it DONE, and is
stored before the answer, so that a successor answers again but never writes again (a write done twice could lie over a
newer one). Reads have no RESULT: they may be done twice.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Final

from driver.fuse import protocol
from driver.fuse.protocol import Op
from driver.host.kernel import MADV_POPULATE_WRITE
from driver.host.locks import RecordLocks
from driver.volume.backing import Backing
from driver.volume.layout import (
    HEADER_WORD,
    PAGE,
    SLOT_BYTES,
    SLOT_MESSAGE,
    SLOTS_AT,
    Shared,
    SlotWord,
    Word,
)
from driver.volume.writepath import WritePath

_ADMITTED: Final = SlotWord.ADMITTED.value
_RESULT: Final = SlotWord.RESULT.value
_UNIQUE: Final = HEADER_WORD + 1
_OFFSET: Final = HEADER_WORD + 6
_LENGTH: Final = HEADER_WORD + 7
_HISTOGRAM_LAST: Final = 39


class Disconnected(Exception):
    """The FUSE connection ended: the file was unmounted."""


class Worker:
    """The thread of request slot `number`. Memory, backing file and /dev/fuse are shared with the others."""

    def __init__(self, shared: Shared, number: int, fuse: int, backing: Backing, spill: int | None) -> None:
        self._shared = shared
        self._number = number
        self._fuse = fuse
        self._backing = backing
        self._slot = shared.slot(number)
        self._words = shared.slot_words(number)
        self._message = self._slot[SLOT_MESSAGE:]
        self._data = self._slot[PAGE:]
        self._path = WritePath(shared, number, self._words, backing, RecordLocks(shared.fd), spill)
        self._others: dict[int, Callable[[int], bytes]] = {
            Op.GETATTR: self._attr,
            Op.SETATTR: self._attr,
            Op.OPEN: protocol.answer_open,
            Op.FLUSH: protocol.answer,
            Op.RELEASE: protocol.answer,
            Op.DESTROY: protocol.answer,
            Op.STATFS: lambda unique: protocol.answer_statfs(unique, shared.words[Word.SIZE_BYTES]),
            Op.INIT: lambda unique: protocol.answer_init(unique, self._message),
            Op.FSYNC: self._flush,
        }

    def populate(self) -> None:
        """Make the slot's pages present: a SIGKILL during a read into absent ones becomes an I/O error."""
        start = SLOTS_AT + self._number * SLOT_BYTES
        self._shared.map.madvise(MADV_POPULATE_WRITE, start, SLOT_BYTES)

    def recover(self) -> bool:
        """Bring what a dead predecessor left in the slot to its end. Whether there was something."""
        self._words[_ADMITTED] = 0
        if not self._words[HEADER_WORD]:
            self._words[_RESULT] = 0
            return False
        self._words[SlotWord.REPLAYED] += 1
        self._serve()
        return True

    def run(self) -> None:
        """Serve until the file is unmounted (Disconnected) or the disk under /dev/fuse fails (OSError)."""
        message = [self._message]
        words = self._words
        while True:
            try:
                os.readv(self._fuse, message)
            except OSError as error:
                words[HEADER_WORD] = 0
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                if error.errno == errno.ENODEV:
                    raise Disconnected from None
                raise
            self._serve()

    def _serve(self) -> None:
        """Do the request in the slot, answer it, and free the slot."""
        words = self._words
        started = time.perf_counter_ns()
        opcode = words[HEADER_WORD] >> 32
        if opcode == Op.WRITE:
            self._write(words[_OFFSET], words[_LENGTH] & 0xFFFFFFFF)
            histogram = SlotWord.WRITE_HISTOGRAM
        elif opcode == Op.READ:
            self._read(words[_OFFSET], words[_LENGTH] & 0xFFFFFFFF)
            histogram = SlotWord.READ_HISTOGRAM
        else:
            self._serve_other(opcode)
            words[HEADER_WORD] = 0
            words[_RESULT] = 0
            return
        words[HEADER_WORD] = 0
        words[_RESULT] = 0
        taken = time.perf_counter_ns() - started
        words[SlotWord.LATENCY] = taken
        words[SlotWord.LAST] = started
        words[histogram + min(taken.bit_length(), _HISTOGRAM_LAST)] += 1

    def _write(self, offset: int, length: int) -> None:
        words = self._words
        number = self._path.write(offset, self._data[:length])
        unique = words[_UNIQUE]
        if number:
            self._answer(protocol.answer_error(unique, number))
            return
        self._answer(protocol.answer_write(unique, length))
        words[SlotWord.WRITES] += 1
        words[SlotWord.WRITE_BYTES] += length

    def _read(self, offset: int, length: int) -> None:
        words = self._words
        unique = words[_UNIQUE]
        data = self._data[: max(0, min(length, self._shared.words[Word.SIZE_BYTES] - offset))]
        try:
            self._backing.read(data, offset)
        except OSError as error:
            self._answer(protocol.answer_error(unique, error.errno or errno.EIO))
            return
        try:
            os.writev(self._fuse, [protocol.answer_data_head(unique, len(data)), data])
        except OSError as error:
            self._answer_failed(error)
        words[SlotWord.READS] += 1
        words[SlotWord.READ_BYTES] += len(data)

    def _serve_other(self, opcode: int) -> None:
        unique = self._words[_UNIQUE]
        if opcode == Op.FALLOCATE:
            extent = protocol.parse_fallocate(self._message)
            number = self._path.zero(extent.offset, extent.length, extent.mode)
            self._answer(protocol.answer_error(unique, number) if number else protocol.answer(unique))
        elif opcode in self._others:
            try:
                self._answer(self._others[opcode](unique))
            except OSError as error:
                self._answer(protocol.answer_error(unique, error.errno or errno.EIO))
        elif opcode not in protocol.UNANSWERED:
            self._answer(protocol.answer_error(unique, errno.ENOSYS))

    def _attr(self, unique: int) -> bytes:
        return protocol.answer_attr(unique, self._shared.words[Word.SIZE_BYTES])

    def _flush(self, unique: int) -> bytes:
        self._backing.flush()
        return protocol.answer(unique)

    def _answer(self, data: bytes) -> None:
        try:
            os.write(self._fuse, data)
        except OSError as error:
            self._answer_failed(error)

    def _answer_failed(self, error: OSError) -> None:
        """ENOENT: a predecessor's answer arrived already, or nobody waits any more; ENODEV shows at the next read."""
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise error
