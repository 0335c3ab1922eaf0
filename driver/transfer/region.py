"""A region's index object: where each of its chunks is stored. Bytes in, tuples out, and back. Pure; any thread.

Little-endian:

    header   64 bytes: "SFREGION", u16 version, u16 cipher, u32 features, u32 region, u32 chunks, u32 packs,
             u32 chunk size, 16 bytes lineage, 16 bytes zero
    packs    28 bytes each: 16 bytes UUID, u32 size of the object, u32 how many of the chunks below lie in it,
             u32 how many bytes of it were this region's when it was stored
    chunks   32 bytes each: u8 codec, 3 bytes zero, u32 pack, u32 offset, u32 length, 16 bytes digest; all zero but the
             codec for a chunk of zeros
    digest   32 bytes: SHA-256 of all that comes before
"""

from __future__ import annotations

import enum
import hashlib
import struct
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from driver.core.errors import Unsupported
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, PACK_BYTES, VOLUME_BYTES_MAX, regions_of
from driver.transfer.records import corrupt

MAGIC: Final = b"SFREGION"
VERSION: Final = 1
CIPHER_NONE: Final = 0
FEATURES: Final = 0
DIGEST_BYTES: Final = 16
"""SHA-256 of a chunk's 64 KiB, its first 128 bits."""
HEADER: Final = struct.Struct("<8sHHIIIII16s16x")
PACK: Final = struct.Struct("<16sIII")
CHUNK: Final = struct.Struct("<B3xIII16s")
_SHA256_BYTES: Final = 32
BYTES_MAX: Final = HEADER.size + CHUNKS_PER_REGION * (PACK.size + CHUNK.size) + _SHA256_BYTES
_NO_DIGEST: Final = bytes(DIGEST_BYTES)


class Codec(enum.IntEnum):
    """How a chunk is stored. 0 is no codec: it marks what was never written."""

    ZERO = 1
    RAW = 2
    ZSTD = 3


class Chunk(NamedTuple):
    """`length` bytes at `offset` in the object of the `pack`-th pack; digest of the 64 KiB that they stand for."""

    codec: int
    pack: int
    offset: int
    length: int
    digest: bytes


class Pack(NamedTuple):
    """A pack object, how many chunks of the region lie in it, and how many of its bytes were the region's when it was
    stored; the rest are other regions'."""

    name: uuid.UUID
    size_bytes: int
    live: int
    share_bytes: int


ZERO_CHUNK: Final = Chunk(Codec.ZERO, 0, 0, 0, _NO_DIGEST)


@dataclass(frozen=True, slots=True)
class RegionIndex:
    """Region `number` of a volume; the first of `chunks` is chunk number * 16384."""

    number: int
    lineage: uuid.UUID
    packs: tuple[Pack, ...]
    chunks: tuple[Chunk, ...]


def build(
    number: int, lineage: uuid.UUID, chunks: Sequence[Chunk], sizes: Mapping[int, tuple[uuid.UUID, int]],
    shares: Mapping[int, int] = MappingProxyType({}),
) -> RegionIndex:  # fmt: skip
    """An index from chunks whose `pack` is a key of `sizes` (name and size of the object). `shares` has the packs that were
    stored for an earlier index, and how many of their bytes were the region's then."""
    live: Counter[int] = Counter()
    needed: Counter[int] = Counter()
    for chunk in chunks:
        if chunk.codec != Codec.ZERO:
            live[chunk.pack] += 1
            needed[chunk.pack] += chunk.length
    place = {pack: index for index, pack in enumerate(live)}
    packs = tuple(Pack(*sizes[pack], count, shares.get(pack, needed[pack])) for pack, count in live.items())
    moved = (chunk if chunk.codec == Codec.ZERO else chunk._replace(pack=place[chunk.pack]) for chunk in chunks)
    return RegionIndex(number, lineage, packs, tuple(moved))


def encode(index: RegionIndex) -> bytes:
    """The object's bytes."""
    parts = [
        HEADER.pack(
            MAGIC, VERSION, CIPHER_NONE, FEATURES, index.number, len(index.chunks), len(index.packs), CHUNK_BYTES,
            index.lineage.bytes,
        ),
        *(PACK.pack(pack.name.bytes, *pack[1:]) for pack in index.packs),
        *(CHUNK.pack(*chunk) for chunk in index.chunks),
    ]  # fmt: skip
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


class _Header(NamedTuple):
    """Of an object whose digest is right; `chunks_at` is where its chunks begin."""

    number: int
    lineage: uuid.UUID
    chunks_at: int


def decode(data: bytes, key: str) -> RegionIndex:
    """The index in `data`, the content of the object `key`. Raises DataCorrupt, Unsupported."""
    header = _header(data, key)
    packs = _packs(data, header)
    chunks = tuple(map(Chunk._make, CHUNK.iter_unpack(data[header.chunks_at : -_SHA256_BYTES])))
    _check(packs, chunks, key)
    return RegionIndex(header.number, header.lineage, packs, chunks)


def decode_packs(data: bytes, key: str) -> tuple[Pack, ...]:
    """The packs of the index in `data` alone: in a small part of the time, as the digest vouches for the rest.

    Raises DataCorrupt, Unsupported.
    """
    return _packs(data, _header(data, key))


def _packs(data: bytes, header: _Header) -> tuple[Pack, ...]:
    found = PACK.iter_unpack(data[HEADER.size : header.chunks_at])
    return tuple(Pack(uuid.UUID(bytes=name), *numbers) for name, *numbers in found)


def _header(data: bytes, key: str) -> _Header:
    if len(data) < HEADER.size + _SHA256_BYTES or not data.startswith(MAGIC):
        raise corrupt(key, "it is no region index")
    _, version, cipher, features, number, chunk_count, pack_count, chunk_bytes, lineage = HEADER.unpack_from(data)
    if version != VERSION or cipher != CIPHER_NONE or features & ~FEATURES or chunk_bytes != CHUNK_BYTES:
        raise Unsupported(
            f"object {key} has version {version}, features {features:#x}, cipher {cipher}, chunk size {chunk_bytes}",
            "it was written by a newer version of Stillframe: use that",
        )
    if hashlib.sha256(data[:-_SHA256_BYTES]).digest() != data[-_SHA256_BYTES:]:
        raise corrupt(key, "its digest does not match its content")
    chunks_at = HEADER.size + pack_count * PACK.size
    if not (
        number < regions_of(VOLUME_BYTES_MAX)
        and 1 <= chunk_count <= CHUNKS_PER_REGION
        and pack_count <= chunk_count
        and len(data) == chunks_at + chunk_count * CHUNK.size + _SHA256_BYTES
    ):
        raise corrupt(key, "its header is out of bounds")
    return _Header(number, uuid.UUID(bytes=lineage), chunks_at)


def _check(packs: tuple[Pack, ...], chunks: tuple[Chunk, ...], key: str) -> None:
    live, needed = [0] * len(packs), [0] * len(packs)
    for position, chunk in enumerate(chunks):
        codec, pack, offset, length, _ = chunk
        if codec == Codec.ZERO:
            if chunk != ZERO_CHUNK:
                raise corrupt(key, f"chunk {position} is zero and is not")
            continue
        fits = (codec == Codec.RAW and length == CHUNK_BYTES) or (codec == Codec.ZSTD and 0 < length < CHUNK_BYTES)
        if not fits or pack >= len(packs) or offset + length > packs[pack].size_bytes:
            raise corrupt(key, f"chunk {position} is out of bounds")
        live[pack] += 1
        needed[pack] += length
    for found, found_bytes, listed in zip(live, needed, packs, strict=True):
        in_bounds = found_bytes <= listed.share_bytes <= listed.size_bytes <= PACK_BYTES
        if not found or found != listed.live or not in_bounds:
            raise corrupt(key, f"pack {listed.name} is out of bounds")
