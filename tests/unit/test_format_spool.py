"""The spool file against a dictionary, and what it refuses."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.core.errors import Internal
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, VOLUME_BYTES_MAX
from driver.transfer.region import ZERO_CHUNK, Chunk, Codec
from driver.transfer.spool import NEVER, SAME, Spool

CHUNKS = CHUNKS_PER_REGION * 2 + 100


def data_chunk(pack: int, place: int) -> Chunk:
    return Chunk(Codec.RAW, pack, place * CHUNK_BYTES, CHUNK_BYTES, bytes(16))


KINDS = st.sampled_from(("zero", "data", "same"))


@given(st.lists(st.tuples(KINDS, st.integers(0, CHUNKS - 1), st.integers(1, CHUNKS)), max_size=8))
def test_it_holds_what_was_put_last(steps: list[tuple[str, int, int]]) -> None:
    fd = os.memfd_create("spool")
    model: dict[int, Chunk] = {}
    spool = Spool(fd, CHUNKS)
    numbers = []
    for kind, first, count in steps:
        count = min(count, CHUNKS - first)
        if kind == "zero" and not any(model.get(chunk, ZERO_CHUNK) != ZERO_CHUNK for chunk in range(first, first + count)):
            spool.put_zero(first, count)
            model.update(dict.fromkeys(range(first, first + count), ZERO_CHUNK))
        elif kind == "same" and model.get(first) != ZERO_CHUNK:
            spool.put_same(first)
            model[first] = Chunk(SAME, 0, 0, 0, bytes(16))
        elif kind == "data" and not any(model.get(chunk) == ZERO_CHUNK for chunk in range(first, first + min(count, 5))):
            numbers.append((spool.add_pack(uuid.uuid4(), 5 * CHUNK_BYTES), uuid.uuid4()))
            chunks = [data_chunk(numbers[-1][0], place) for place in range(min(count, 5))]
            spool.put(first, chunks)
            model.update({first + place: chunk for place, chunk in enumerate(chunks)})
        spool = Spool(fd, CHUNKS)  # a successor's
    assert [number for number, _ in numbers] == list(range(len(numbers)))
    codecs = [chunk.codec for chunk in model.values()]
    assert spool.counts() == (codecs.count(Codec.RAW), codecs.count(Codec.ZERO), codecs.count(SAME))
    for number in range(spool.regions):
        wanted = range(number * CHUNKS_PER_REGION, min((number + 1) * CHUNKS_PER_REGION, CHUNKS))
        if not spool.is_touched(number):
            assert all(chunk not in model for chunk in wanted)
        elif spool.is_zero(number):
            assert all(model[chunk] == ZERO_CHUNK for chunk in wanted)
        else:
            never = Chunk(NEVER, 0, 0, 0, bytes(16))
            assert spool.chunks(number) == [model.get(chunk, never) for chunk in wanted]
    os.close(fd)


def test_the_largest_volume_of_zeros_takes_no_room() -> None:
    fd = os.memfd_create("spool")
    chunks = VOLUME_BYTES_MAX // CHUNK_BYTES
    spool = Spool(fd, chunks)
    spool.put_zero(0, chunks)
    assert all(spool.is_zero(number) for number in range(spool.regions))
    assert spool.counts() == (0, chunks, 0)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    os.close(fd)


@pytest.mark.parametrize(("first", "count"), [(CHUNKS, 1), (CHUNKS - 1, 2), (-1, 1)])
def test_chunks_outside_the_volume_are_refused(first: int, count: int) -> None:
    spool = Spool(os.memfd_create("spool"), CHUNKS)
    with pytest.raises(Internal):
        spool.put_zero(first, count)
    with pytest.raises(Internal):
        spool.put(first, [data_chunk(0, 0)] * count)


def test_the_spool_of_another_volume_is_refused() -> None:
    fd = os.memfd_create("spool")
    Spool(fd, CHUNKS)
    with pytest.raises(Internal):
        Spool(fd, CHUNKS + 1)
