"""A region's index after a session, against what its chunks are: a plain list."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from driver.core.errors import Internal
from driver.core.sizes import CHUNK_BYTES, PACK_BYTES
from driver.transfer.merge import is_unchanged, merge, needs_parent
from driver.transfer.region import ZERO_CHUNK, Chunk, Codec, RegionIndex, build, decode, encode
from driver.transfer.spool import NEVER, SAME

LINEAGE = uuid.UUID(int=7)
Where = tuple[uuid.UUID, int, bytes] | None
"""A chunk's pack, offset and digest; None for zeros."""


def where(index: RegionIndex | None, count: int) -> list[Where]:
    if index is None:
        return [None] * count
    return [
        None if chunk.codec == Codec.ZERO else (index.packs[chunk.pack].name, chunk.offset, chunk.digest)
        for chunk in index.chunks
    ]


def raw(pack: int, place: int) -> Chunk:
    return Chunk(Codec.RAW, pack, place * CHUNK_BYTES, CHUNK_BYTES, bytes([pack, place]) * 8)


@st.composite
def regions(draw: st.DrawFn) -> tuple[list[Chunk], RegionIndex | None, int]:
    """What a session stored of a region, its parent's index, and how many chunks the parent has of it."""
    before = draw(st.lists(st.sampled_from((0, 1, 2)), max_size=12))
    packs = {pack: (uuid.UUID(int=100 + pack), PACK_BYTES) for pack in (1, 2)}
    of_parent = [ZERO_CHUNK if pack == 0 else raw(pack, place) for place, pack in enumerate(before)]
    parent = build(3, LINEAGE, of_parent, packs) if any(before) else None
    grown = draw(st.integers(0, 4))
    drawn = draw(st.lists(st.sampled_from((NEVER, SAME, Codec.ZERO, 11, 12)), min_size=len(before), max_size=len(before)))
    drawn += draw(st.lists(st.sampled_from((Codec.ZERO, 11, 12)), min_size=grown, max_size=grown))
    chunks = []
    for place, kind in enumerate(drawn):
        if kind in (NEVER, SAME):
            chunks.append(Chunk(kind, 0, 0, 0, bytes(16)))
        else:
            chunks.append(ZERO_CHUNK if kind == Codec.ZERO else raw(kind, place))
    return chunks, parent, len(before)


@given(regions())
def test_a_chunk_is_where_the_session_put_it_or_where_the_parent_has_it(
    drawn: tuple[list[Chunk], RegionIndex | None, int],
) -> None:
    chunks, parent, parent_chunks = drawn
    if not chunks:
        return
    sizes = {pack: (uuid.UUID(int=pack), PACK_BYTES) for pack in (11, 12)}
    before = where(parent, parent_chunks)
    expected: list[Where] = []
    for place, chunk in enumerate(chunks):
        if chunk.codec in (NEVER, SAME):
            expected.append(before[place])
        else:
            expected.append(None if chunk == ZERO_CHUNK else (sizes[chunk.pack][0], chunk.offset, chunk.digest))
    merged = merge(3, LINEAGE, chunks, sizes, parent if needs_parent(chunks) else None, parent_chunks)
    assert where(merged, len(chunks)) == expected
    assert (merged is None) == (not any(expected))
    if merged is not None:
        assert decode(encode(merged), "key") == merged, "its live counts and packs are right"
    if is_unchanged(chunks, parent, parent_chunks):
        assert expected == before
    elif expected == before:
        assert any(chunk.codec == Codec.RAW for chunk in chunks)


@given(st.integers(0, 5), st.integers(1, 5))
def test_a_chunk_that_nobody_has_is_an_error(parent_chunks: int, more: int) -> None:
    chunks = [Chunk(NEVER, 0, 0, 0, bytes(16))] * (parent_chunks + more)
    try:
        merge(0, LINEAGE, chunks, {}, None, parent_chunks)
    except Internal as error:
        assert "never sent" in error.message
    else:
        raise AssertionError
