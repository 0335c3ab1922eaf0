"""One request slot's thread: receive a FUSE request, do it, remember that it is done, answer, again.

    FREE -> RECEIVED -> DONE(result) -> FREE

The slot is FREE while its header word is 0; the kernel's copy into it makes it RECEIVED; RESULT makes it DONE, and is
stored before the answer, so that a successor answers again but never writes again (a write done twice could lie over a
newer one). Reads have no RESULT: they may be done twice.

A write that a nearly full buffer slows down stays RECEIVED: its thread puts slot and all aside (`parking`) and goes on
with another slot.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from time import perf_counter_ns as _clock
from typing import Final

from driver.fuse import protocol
from driver.fuse.protocol import Op
from driver.host.kernel import MADV_POPULATE_WRITE
from driver.host.locks import RecordLocks
from driver.volume.backing import Backing
from driver.volume.capture import Parked
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

_RESULT: Final = SlotWord.RESULT.value
_LATENCY: Final = SlotWord.LATENCY.value
_LAST: Final = SlotWord.LAST.value
_READ_BYTES: Final = SlotWord.READ_BYTES.value
_WRITE_BYTES: Final = SlotWord.WRITE_BYTES.value
_READ_HISTOGRAM: Final = SlotWord.READ_HISTOGRAM.value
_WRITE_HISTOGRAM: Final = SlotWord.WRITE_HISTOGRAM.value
_SIZE: Final = Word.SIZE_BYTES.value
_HEADER: Final = HEADER_WORD
_UNIQUE: Final = HEADER_WORD + 1
_OFFSET: Final = HEADER_WORD + 6
_LENGTH: Final = HEADER_WORD + 7
_LENGTH_MASK: Final = 0xFFFFFFFF
_READ: Final = Op.READ.value
_WRITE: Final = Op.WRITE.value


class Disconnected(Exception):
    """The FUSE connection ended: the file was unmounted."""


class Worker:
    """The thread of request slot `number`. Memory, backing file and /dev/fuse are shared with the others."""

    def __init__(self, shared: Shared, number: int, fuse: int, backing: Backing, spill: int | None) -> None:
        self._shared = shared
        self._header = shared.words
        self._number = number
        self._fuse = fuse
        self._backing = backing
        self._slot = shared.slot(number)
        self._words = shared.slot_words(number)
        self._message = self._slot[SLOT_MESSAGE:]
        self._data = self._slot[PAGE:]
        self._path = WritePath(shared, number, self._words, backing, RecordLocks(shared.fd), spill)
        self._since = 0
        """When a parked request was received; 0: none is."""
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
        if not self._words[HEADER_WORD]:
            return False
        self._words[SlotWord.REPLAYED] += 1
        self.resume()
        return True

    def resume(self) -> None:
        """Do the request in the slot, which has waited as long as it has to."""
        self._serve(may_wait=False)

    def run(self) -> None:
        """Serve until the file is unmounted (Disconnected) or /dev/fuse fails (OSError). Raises Parked with a request in
        the slot: `resume` it after that time."""
        message = [self._message]
        words = self._words
        fuse = self._fuse
        receive = os.readv
        serve = self._serve
        while True:
            try:
                receive(fuse, message)
            except OSError as error:
                words[_HEADER] = 0
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                if error.errno == errno.ENODEV:
                    raise Disconnected from None
                raise
            serve()

    def _serve(self, may_wait: bool = True) -> None:
        """Do the request in the slot, answer it, and free the slot. With `may_wait`, may raise Parked."""
        words = self._words
        started = _clock()
        opcode = words[_HEADER] >> 32
        if opcode == _WRITE:
            length = words[_LENGTH] & _LENGTH_MASK
            try:
                number = self._path.write(words[_OFFSET], self._data[:length], may_wait=may_wait)
            except Parked:
                self._since = started
                raise
            if self._since:
                started, self._since = self._since, 0
            unique = words[_UNIQUE]
            self._answer(protocol.answer_error(unique, number) if number else protocol.answer_write(unique, length))
            words[_WRITE_BYTES] += length
            histogram = _WRITE_HISTOGRAM
        elif opcode == _READ:
            words[_READ_BYTES] += self._read(words[_OFFSET], words[_LENGTH] & _LENGTH_MASK)
            histogram = _READ_HISTOGRAM
        else:
            self._serve_other(opcode)
            words[_HEADER] = 0
            words[_RESULT] = 0
            return
        words[_HEADER] = 0
        words[_RESULT] = 0
        taken = _clock() - started
        words[_LATENCY] = taken
        words[_LAST] = started
        words[histogram + taken.bit_length()] += 1

    def _read(self, offset: int, length: int) -> int:
        """Read and answer; the bytes read."""
        unique = self._words[_UNIQUE]
        if offset + length > self._header[_SIZE]:
            length = max(0, self._header[_SIZE] - offset)
        data = self._data[:length]
        try:
            self._backing.read(data, offset)
        except OSError as error:
            self._answer(protocol.answer_error(unique, error.errno or errno.EIO))
            return 0
        try:
            os.writev(self._fuse, (protocol.answer_data_head(unique, length), data))
        except OSError as error:
            self._answer_failed(error)
        return length

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
