"""Where the chunks of a running session went: a sparse file on the node's disk that outlives the sender. One process.

    0          header: "SFSPOOL1", u64 chunks of the volume
    4 KiB      one byte a region: 1 if all of it is zero
    64 KiB     packs, 32 bytes each: 16 bytes UUID, u32 size, 12 bytes zero; a record of zeros is the end
    256 MiB    chunks, 32 bytes each, as in a region index, `pack` counting the packs above; codec 0: never written

Writing an entry again is harmless: the later one counts. Not synced: the session dies with the node anyway.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import uuid
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from driver.core.errors import DeviceError, Internal, OutOfSpace, StillframeError
from driver.core.sizes import CHUNKS_PER_REGION, MIB
from driver.transfer.region import CHUNK, ZERO_CHUNK, Chunk, Codec, RegionIndex, build

_HEADER: Final = struct.Struct("<8sQ")
_MAGIC: Final = b"SFSPOOL1"
_REGIONS_AT: Final = 4096
_PACKS_AT: Final = 64 * 1024
_CHUNKS_AT: Final = 256 * MIB
_PACK: Final = struct.Struct("<16sI12x")
_PACKS_MAX: Final = (_CHUNKS_AT - _PACKS_AT) // _PACK.size
_ZERO: Final = CHUNK.pack(*ZERO_CHUNK)


class Counts(NamedTuple):
    """Chunks that the spool knows of."""

    stored: int
    zero: int


class Spool:
    """The spool file behind `fd` for a volume of `chunks` chunks. Any thread; `add_pack` takes a lock."""

    def __init__(self, fd: int, chunks: int) -> None:
        self._fd = fd
        self._chunks = chunks
        self.regions = -(-chunks // CHUNKS_PER_REGION)
        self._adding = threading.Lock()  # guards _packs and its part of the file
        found = os.pread(fd, _HEADER.size, 0)
        if not found.strip(b"\0"):
            self._write(_HEADER.pack(_MAGIC, chunks), 0)
        elif found != _HEADER.pack(_MAGIC, chunks):
            raise Internal("the spool file belongs to another volume, or to another version")
        self._packs = self._read_packs()

    def _read_packs(self) -> int:
        count = 0
        while True:
            data = os.pread(self._fd, 4096 * _PACK.size, _PACKS_AT + count * _PACK.size)
            for name, size in _PACK.iter_unpack(data[: len(data) // _PACK.size * _PACK.size]):
                if not size or name == bytes(16):
                    return count
                count += 1
            if len(data) < 4096 * _PACK.size or count >= _PACKS_MAX:
                return count

    def add_pack(self, name: uuid.UUID, size_bytes: int) -> int:
        """The number by which the chunks of a pack that the store has refer to it."""
        with self._adding:
            number = self._packs
            if number >= _PACKS_MAX:
                raise Internal(f"a session of more than {_PACKS_MAX} packs")
            self._write(_PACK.pack(name.bytes, size_bytes), _PACKS_AT + number * _PACK.size)
            self._packs += 1
            return number

    def put(self, first: int, chunks: Sequence[Chunk]) -> None:
        """Entries of the chunks from `first` on."""
        self._check(first, len(chunks))
        self._write(b"".join([CHUNK.pack(*chunk) for chunk in chunks]), _CHUNKS_AT + first * CHUNK.size)

    def put_zero(self, first: int, count: int) -> None:
        """`count` zero chunks from `first` on; a whole region takes one byte."""
        self._check(first, count)
        end = first + count
        while first < end:
            region = first // CHUNKS_PER_REGION
            stop = min((region + 1) * CHUNKS_PER_REGION, end)
            whole = min(CHUNKS_PER_REGION, self._chunks - region * CHUNKS_PER_REGION)
            if stop - first == whole:
                last = end // CHUNKS_PER_REGION if end < self._chunks else self.regions
                self._write(b"\x01" * (last - region), _REGIONS_AT + region)
                first = min(last * CHUNKS_PER_REGION, end)
            else:
                self._write(_ZERO * (stop - first), _CHUNKS_AT + first * CHUNK.size)
                first = stop

    def region(self, number: int, lineage: uuid.UUID) -> RegionIndex | None:
        """The index of a region whose every chunk was put; None if all are zero. Raises Internal for a missing one."""
        if os.pread(self._fd, 1, _REGIONS_AT + number) == b"\x01":
            return None
        first = number * CHUNKS_PER_REGION
        count = min(CHUNKS_PER_REGION, self._chunks - first)
        data = self._entries(first, count)
        codecs = data[:: CHUNK.size]
        lost = codecs.find(0)
        if lost >= 0:
            raise Internal(f"chunk {first + lost} was never sent")
        if codecs.count(Codec.ZERO) == count:
            return None
        chunks = [Chunk._make(fields) for fields in CHUNK.iter_unpack(data)]
        return build(number, lineage, chunks, self._sizes({chunk.pack for chunk in chunks}))

    def counts(self) -> Counts:
        """What was put so far; reads the whole file."""
        stored = zero = 0
        marks = os.pread(self._fd, self.regions, _REGIONS_AT).ljust(self.regions, b"\0")
        for number, mark in enumerate(marks):
            first = number * CHUNKS_PER_REGION
            count = min(CHUNKS_PER_REGION, self._chunks - first)
            if mark:
                zero += count
                continue
            codecs = self._entries(first, count)[:: CHUNK.size]
            zero += codecs.count(Codec.ZERO)
            stored += len(codecs) - codecs.count(Codec.ZERO) - codecs.count(0)
        return Counts(stored, zero)

    def _entries(self, first: int, count: int) -> bytes:
        data = os.pread(self._fd, count * CHUNK.size, _CHUNKS_AT + first * CHUNK.size)
        return data.ljust(count * CHUNK.size, b"\0")

    def _sizes(self, packs: Iterable[int]) -> dict[int, tuple[uuid.UUID, int]]:
        found = {}
        for pack in packs:
            name, size = _PACK.unpack(os.pread(self._fd, _PACK.size, _PACKS_AT + pack * _PACK.size).ljust(32, b"\0"))
            found[pack] = (uuid.UUID(bytes=name), size)
        return found

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 1 or first + count > self._chunks:
            raise Internal(f"chunks {first} to {first + count} are not in a volume of {self._chunks} chunks")

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _spool_error(error) from error


def _spool_error(error: OSError) -> StillframeError:
    message = f"the session's spool file: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfSpace(message, "make room on the file system of the state folder")
    return DeviceError(message, "look at the disk of the state folder")
