"""Where the chunks of a running session went: a sparse file on the node's disk that outlives the sender. One process.

    0          header: "SFSPOOL1", u64 chunks of the volume
    4 KiB      one byte a region: 1 if all of it is zero
    64 KiB     packs, 32 bytes each: 16 bytes UUID, u32 size, 12 bytes zero; a record of zeros is the end
    256 MiB    chunks, 32 bytes each, as in a region index, `pack` counting the packs above; codec 0: never written,
               SAME: as in the parent
    16 GiB     1 MiB a region: u64 length of the parent's index object, at 4 KiB the object; 0: not fetched

Writing an entry again is harmless: the later one counts. Not synced: the session dies with the node anyway.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from driver.core.errors import DeviceError, Internal, OutOfSpace, StillframeError
from driver.core.sizes import CHUNKS_PER_REGION, GIB, MIB
from driver.host import files
from driver.transfer.region import BYTES_MAX, CHUNK, ZERO_CHUNK, Chunk, Codec

_HEADER: Final = struct.Struct("<8sQ")
_MAGIC: Final = b"SFSPOOL1"
_REGIONS_AT: Final = 4096
_PACKS_AT: Final = 64 * 1024
_CHUNKS_AT: Final = 256 * MIB
_PACK: Final = struct.Struct("<16sI12x")
_PACKS_MAX: Final = (_CHUNKS_AT - _PACKS_AT) // _PACK.size
_PARENTS_AT: Final = 16 * GIB
_PARENT_BYTES: Final = MIB
_PARENT_OBJECT: Final = 4096
_LENGTH: Final = struct.Struct("<Q")
_ZERO: Final = CHUNK.pack(*ZERO_CHUNK)
NEVER: Final = 0
"""Codec of a chunk that was never written."""
SAME: Final = 255
"""Codec of a chunk that is stored already: as in the parent."""
_SAME: Final = CHUNK.pack(SAME, 0, 0, 0, bytes(16))


class Counts(NamedTuple):
    """Chunks that the spool knows of."""

    stored: int
    zero: int
    same: int


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

    def put_same(self, chunk: int) -> None:
        """A chunk that the parent has."""
        self._check(chunk, 1)
        self._write(_SAME, _CHUNKS_AT + chunk * CHUNK.size)

    def is_zero(self, number: int) -> bool:
        """Whether the whole of a region was put as zero."""
        return os.pread(self._fd, 1, _REGIONS_AT + number) == b"\x01"

    def is_touched(self, number: int) -> bool:
        """Whether anything of a region was put."""
        first = number * CHUNKS_PER_REGION
        return self.is_zero(number) or self._has_data(_CHUNKS_AT + first * CHUNK.size, self._count(number) * CHUNK.size)

    def chunks(self, number: int) -> list[Chunk]:
        """What was put of a region that is not wholly zero; NEVER and SAME are codecs here."""
        data = self._entries(number * CHUNKS_PER_REGION, self._count(number))
        return [Chunk._make(fields) for fields in CHUNK.iter_unpack(data)]

    def sizes(self, packs: Iterable[int]) -> Mapping[int, tuple[uuid.UUID, int]]:
        """Name and size in bytes of packs, by the numbers that chunks refer to them by."""
        found = {}
        for pack in packs:
            name, size = _PACK.unpack(os.pread(self._fd, _PACK.size, _PACKS_AT + pack * _PACK.size).ljust(32, b"\0"))
            found[pack] = (uuid.UUID(bytes=name), size)
        return found

    def counts(self) -> Counts:
        """What was put so far; reads all of it."""
        stored = zero = same = 0
        for number in range(self.regions):
            if self.is_zero(number):
                zero += self._count(number)
            elif self.is_touched(number):
                codecs = self._entries(number * CHUNKS_PER_REGION, self._count(number))[:: CHUNK.size]
                zero += codecs.count(Codec.ZERO)
                same += codecs.count(SAME)
                stored += codecs.count(Codec.RAW) + codecs.count(Codec.ZSTD)
        return Counts(stored, zero, same)

    def put_parent(self, number: int, data: bytes) -> None:
        """Keep the parent's index object of a region."""
        at = _PARENTS_AT + number * _PARENT_BYTES
        self._write(data, at + _PARENT_OBJECT)
        self._write(_LENGTH.pack(len(data)), at)

    def parent(self, number: int) -> bytes | None:
        """The parent's index object of a region, if it was kept."""
        at = _PARENTS_AT + number * _PARENT_BYTES
        (length,) = _LENGTH.unpack(os.pread(self._fd, _LENGTH.size, at).ljust(_LENGTH.size, b"\0"))
        return os.pread(self._fd, length, at + _PARENT_OBJECT) if length else None

    def parent_bytes(self, number: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` of an index object that was kept."""
        return os.pread(self._fd, length, _PARENTS_AT + number * _PARENT_BYTES + _PARENT_OBJECT + offset)

    def _count(self, number: int) -> int:
        """How many chunks a region has."""
        return min(CHUNKS_PER_REGION, self._chunks - number * CHUNKS_PER_REGION)

    def _has_data(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) < offset + length
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise _spool_error(error) from error
            return False

    def _entries(self, first: int, count: int) -> bytes:
        data = os.pread(self._fd, count * CHUNK.size, _CHUNKS_AT + first * CHUNK.size)
        return data.ljust(count * CHUNK.size, b"\0")

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 1 or first + count > self._chunks:
            raise Internal(f"chunks {first} to {first + count} are not in a volume of {self._chunks} chunks")

    def _write(self, data: bytes, offset: int) -> None:
        try:
            files.pwrite_all(self._fd, data, offset)
        except OSError as error:
            raise _spool_error(error) from error


def _spool_error(error: OSError) -> StillframeError:
    message = f"the session's spool file: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfSpace(message, "make room on the file system of the state folder")
    return DeviceError(message, "look at the disk of the state folder")


assert _CHUNKS_AT + (1 << 28) * CHUNK.size <= _PARENTS_AT and _PARENT_OBJECT + BYTES_MAX <= _PARENT_BYTES
