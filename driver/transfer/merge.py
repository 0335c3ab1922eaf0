"""A region's next index, from what a session stored of it and from its parent's index. Pure; any thread."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from driver.core.errors import Internal
from driver.transfer.region import ZERO_CHUNK, Chunk, Codec, RegionIndex, build
from driver.transfer.spool import NEVER, SAME

_PARENTS: Final = 1 << 32
"""Numbers of the parent's packs begin here, among those of the session's own."""


def needs_parent(chunks: Sequence[Chunk]) -> bool:
    """Whether a region that the session stored these chunks of takes others from its parent."""
    return any(chunk.codec in (NEVER, SAME) for chunk in chunks)


def is_unchanged(chunks: Sequence[Chunk], parent: RegionIndex | None, parent_chunks: int) -> bool:
    """Whether the parent's index (None: all of its `parent_chunks` are zero) says of the region what is to be said now."""
    if len(chunks) != parent_chunks:
        return False
    for position, chunk in enumerate(chunks):
        if chunk.codec in (NEVER, SAME):
            continue
        before = Codec.ZERO if parent is None else parent.chunks[position].codec
        if chunk.codec != Codec.ZERO or before != Codec.ZERO:
            return False
    return True


def merge(
    number: int, lineage: uuid.UUID, chunks: Sequence[Chunk], sizes: Mapping[int, tuple[uuid.UUID, int]],
    parent: RegionIndex | None, parent_chunks: int,
) -> RegionIndex | None:  # fmt: skip
    """The index of region `number`; None if all of it is zero. `sizes` has names and sizes of the session's packs.

    Raises Internal for a chunk that neither the session nor the parent has.
    """
    merged: list[Chunk] = []
    for position, chunk in enumerate(chunks):
        if chunk.codec in (NEVER, SAME):
            if position >= parent_chunks:
                raise Internal(f"chunk {position} of region {number} was never sent")
            chunk = ZERO_CHUNK if parent is None else parent.chunks[position]
            if chunk.codec != Codec.ZERO:
                chunk = chunk._replace(pack=_PARENTS + chunk.pack)
        merged.append(chunk)
    if all(chunk.codec == Codec.ZERO for chunk in merged):
        return None
    packs = dict(sizes)
    shares = {}
    for place, pack in enumerate(parent.packs if parent is not None else (), _PARENTS):
        packs[place] = (pack.name, pack.size_bytes)
        shares[place] = pack.share_bytes
    return build(number, lineage, merged, packs, shares)
