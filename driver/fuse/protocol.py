"""Requests and answers of the FUSE protocol for one regular file, node 1. Pure: bytes in, bytes out.

Numbers and layouts: include/uapi/linux/fuse.h. Everything is in the host's byte order; the answers here are little-endian
because every host that we support is (x86_64, aarch64).
"""

from __future__ import annotations

import enum
import errno
import stat
import struct
from dataclasses import dataclass
from typing import Final

from driver.core.errors import Unsupported

IN_HEADER_BYTES: Final = 40
WRITE_IN_BYTES: Final = 40
MESSAGE_HEAD_BYTES: Final = IN_HEADER_BYTES + WRITE_IN_BYTES
"""What precedes the data of a WRITE: a buffer that ends its first page here has the data page-aligned."""
MAX_WRITE_BYTES: Final = 1 << 18
"""Largest request. Each thread of each volume has a populated buffer of that size; larger ones are not faster."""
MAX_PAGES: Final = MAX_WRITE_BYTES // 4096


class Op(enum.IntEnum):
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43


UNANSWERED: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

FUSE_ASYNC_READ: Final = 1 << 0
FUSE_BIG_WRITES: Final = 1 << 5
FUSE_ASYNC_DIO: Final = 1 << 15
FUSE_MAX_PAGES: Final = 1 << 22
_WANTED: Final = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES

MAJOR: Final = 7
MINOR: Final = 31
"""What we speak: no field of ours is newer. The kernel adapts to the lower minor."""

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
_INIT_IN: Final = struct.Struct("<IIII")
_RANGE_IN: Final = struct.Struct("<QQI")
_FALLOCATE_IN: Final = struct.Struct("<QQQI")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHII24x")
_ATTR_OUT: Final = struct.Struct("<QII6Q3I7I")
_OPEN_OUT: Final = struct.Struct("<QII")
_STATFS_OUT: Final = struct.Struct("<5Q4I24x")
_WRITE_ANSWER: Final = struct.Struct("<IiQII")


@dataclass(frozen=True, slots=True)
class Head:
    """The header of a request (struct fuse_in_header)."""

    length: int
    opcode: int
    unique: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [offset, offset + length) of the file; `mode` is fallocate's (linux/falloc.h), 0 for READ and WRITE."""

    offset: int
    length: int
    mode: int = 0


def parse_head(message: memoryview | bytes) -> Head:
    """The header at the start of `message`, at least 40 bytes. Raises Unsupported if its length cannot be.

    This and `parse_io` are for simple servers, as in tests: a volume process reads the words in its slots themselves.
    """
    length, opcode, unique, *_ = _IN_HEADER.unpack_from(message)
    if length < IN_HEADER_BYTES:
        raise Unsupported(f"the kernel sent a FUSE request of {length} bytes")
    return Head(length, opcode, unique)


def parse_io(message: memoryview | bytes) -> Range:
    """The range of a READ or WRITE request."""
    _, offset, size = _RANGE_IN.unpack_from(message, IN_HEADER_BYTES)
    return Range(offset, size)


def parse_fallocate(message: memoryview | bytes) -> Range:
    """The range and mode of a FALLOCATE request."""
    _, offset, length, mode = _FALLOCATE_IN.unpack_from(message, IN_HEADER_BYTES)
    return Range(offset, length, mode)


def answer_init(unique: int, message: memoryview | bytes) -> bytes:
    """The answer to INIT. Raises Unsupported for a kernel older than protocol 7.31 (Linux 5.4)."""
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(message, IN_HEADER_BYTES)
    if (major, minor) < (MAJOR, MINOR):
        raise Unsupported(f"the kernel speaks FUSE {major}.{minor}", "Linux 5.4 or newer is needed")
    body = _INIT_OUT.pack(
        MAJOR, MINOR, max_readahead, flags & _WANTED, 64, 64, MAX_WRITE_BYTES, 1, MAX_PAGES, 0, 0, 0
    )  # fmt: skip
    return answer(unique, body)


def answer_attr(unique: int, size_bytes: int) -> bytes:
    """The answer to GETATTR and SETATTR. Valid for 0 s: else LOOP_SET_CAPACITY keeps the old size."""
    return answer(
        unique,
        _ATTR_OUT.pack(0, 0, 0, 1, size_bytes, size_bytes // 512, 0, 0, 0, 0, 0, 0,
                       stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0),
    )  # fmt: skip


def answer_open(unique: int) -> bytes:
    """The answer to OPEN: direct I/O, writes in parallel."""
    return answer(unique, _OPEN_OUT.pack(0, FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES, 0))


def answer_statfs(unique: int, size_bytes: int) -> bytes:
    """The answer to STATFS; f_bsize becomes the discard granularity of the loop device on the file."""
    return answer(unique, _STATFS_OUT.pack(size_bytes // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0))


def answer_write(unique: int, size: int) -> bytes:
    """The answer to a WRITE of which `size` bytes were written."""
    return _WRITE_ANSWER.pack(24, 0, unique, size, 0)


def answer_data_head(unique: int, length: int) -> bytes:
    """What precedes the `length` bytes of a READ's answer."""
    return _OUT_HEADER.pack(16 + length, 0, unique)


def answer(unique: int, body: bytes = b"") -> bytes:
    """The answer of success to a request, with what belongs to it."""
    return _OUT_HEADER.pack(16 + len(body), 0, unique) + body


def answer_error(unique: int, number: int) -> bytes:
    """An answer with errno `number` > 0."""
    return _OUT_HEADER.pack(16, -(number or errno.EIO), unique)
