"""Which ranges of which packs a region needs: few requests, none of them large. Pure; any thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from driver.core.sizes import CHUNKS_PER_REGION, KIB, MIB
from driver.store import layout
from driver.transfer.region import Chunk, Codec, RegionIndex

GAP_BYTES: Final = 128 * KIB
"""Bytes that nobody wants are read along if they are fewer: a request costs more."""
RANGE_BYTES_MAX: Final = 8 * MIB


@dataclass(frozen=True, slots=True)
class Range:
    """`length` bytes at `offset` of the pack object `key`, whose size is `total_bytes`; the volume's chunks in them."""

    key: str
    total_bytes: int
    offset: int
    length: int
    chunks: tuple[tuple[int, Chunk], ...]


@dataclass(frozen=True, slots=True)
class ZeroRun:
    """`count` zero chunks of the volume, from `first` on."""

    first: int
    count: int


def ranges(index: RegionIndex) -> Iterator[Range]:
    """The ranges that hold the region's chunks, pack by pack; within one the chunks are in the order of their bytes."""
    first = index.number * CHUNKS_PER_REGION
    stored = [(position, chunk) for position, chunk in enumerate(index.chunks, first) if chunk.codec != Codec.ZERO]
    stored.sort(key=lambda item: (item[1].pack, item[1].offset))
    together: list[tuple[int, Chunk]] = []
    for item in stored:
        if together and not _joins(together, item[1]):
            yield _range(index, together)
            together = []
        together.append(item)
    if together:
        yield _range(index, together)


def zero_runs(index: RegionIndex) -> Iterator[ZeroRun]:
    """The region's zero chunks, neighbours together."""
    first = index.number * CHUNKS_PER_REGION
    start: int | None = None
    for position, chunk in enumerate(index.chunks, first):
        if chunk.codec == Codec.ZERO:
            start = position if start is None else start
        elif start is not None:
            yield ZeroRun(start, position - start)
            start = None
    if start is not None:
        yield ZeroRun(start, first + len(index.chunks) - start)


def _joins(together: list[tuple[int, Chunk]], chunk: Chunk) -> bool:
    start, last = together[0][1], together[-1][1]
    return (
        chunk.pack == last.pack
        and chunk.offset - (last.offset + last.length) <= GAP_BYTES
        and chunk.offset + chunk.length - start.offset <= RANGE_BYTES_MAX
    )


def _range(index: RegionIndex, together: list[tuple[int, Chunk]]) -> Range:
    pack = index.packs[together[0][1].pack]
    offset = together[0][1].offset
    end = max(chunk.offset + chunk.length for _, chunk in together)
    return Range(layout.pack(str(index.lineage), str(pack.name)), pack.size_bytes, offset, end - offset, tuple(together))
