"""Region indexes and chunks: what goes in comes out; what was altered is refused, by name, without much memory."""

from __future__ import annotations

import hashlib
import random
import struct
import uuid

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from driver.core.errors import DataCorrupt, Unsupported
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, PACK_BYTES
from driver.transfer import plan, region
from driver.transfer.chunks import WORTH_BYTES, Compressor, Decompressor, digest_of
from driver.transfer.region import ZERO_CHUNK, Chunk, Codec, RegionIndex

KEY = "lineages/l/regions/r"


@st.composite
def indexes(draw: st.DrawFn) -> RegionIndex:
    """Chunks as a sender lays them: back to back in a few packs, shuffled, with zeros between."""
    chunks: list[Chunk] = []
    sizes: dict[int, tuple[uuid.UUID, int]] = {}
    for pack in range(draw(st.integers(0, 3))):
        offset = 0
        for _ in range(draw(st.integers(1, 8))):
            length = draw(st.sampled_from([CHUNK_BYTES, 1, 100, WORTH_BYTES]))
            codec = Codec.RAW if length == CHUNK_BYTES else Codec.ZSTD
            chunks.append(Chunk(codec, pack, offset, length, draw(st.binary(min_size=16, max_size=16))))
            offset += length
        sizes[pack] = (draw(st.uuids()), offset)
    chunks += [ZERO_CHUNK] * draw(st.integers(0 if chunks else 1, 8))
    random.Random(draw(st.integers(0, 99))).shuffle(chunks)
    return region.build(draw(st.integers(0, 16383)), draw(st.uuids()), chunks, sizes)


@given(indexes())
def test_an_index_comes_back(index: RegionIndex) -> None:
    assert region.decode(region.encode(index), KEY) == index


@given(indexes(), st.data())
def test_a_flipped_bit_is_found(index: RegionIndex, data: st.DataObject) -> None:
    content = bytearray(region.encode(index))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((DataCorrupt, Unsupported), match=KEY):
        region.decode(bytes(content), KEY)


@given(indexes(), st.data())
def test_an_index_cut_short_is_found(index: RegionIndex, data: st.DataObject) -> None:
    content = region.encode(index)
    with pytest.raises(DataCorrupt, match=KEY):
        region.decode(content[: data.draw(st.integers(0, len(content) - 1))], KEY)


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@given(indexes(), st.data())
def test_fields_out_of_bounds_are_refused_even_with_a_right_digest(index: RegionIndex, data: st.DataObject) -> None:
    content = bytearray(region.encode(index)[:-32])
    at = data.draw(st.integers(0, len(content) // 4 - 1)) * 4
    content[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
    try:
        found = region.decode(seal(bytes(content)), KEY)
    except (DataCorrupt, Unsupported) as error:
        assert KEY in error.message
        return
    assert len(found.chunks) == len(index.chunks)
    for chunk in found.chunks:
        assert chunk.codec == Codec.ZERO or chunk.offset + chunk.length <= found.packs[chunk.pack].size_bytes


@pytest.mark.parametrize(("offset", "kind", "value"), [(8, "<H", 2), (10, "<H", 1), (12, "<I", 1), (28, "<I", 4096)])
def test_what_this_version_does_not_know_is_refused(offset: int, kind: str, value: int) -> None:
    content = bytearray(region.encode(region.build(0, uuid.uuid4(), [ZERO_CHUNK], {}))[:-32])
    struct.pack_into(kind, content, offset, value)
    with pytest.raises(Unsupported, match=KEY):
        region.decode(seal(bytes(content)), KEY)


def test_a_full_index_fits_its_bound() -> None:
    chunks = [Chunk(Codec.RAW, pack, 0, CHUNK_BYTES, bytes(16)) for pack in range(CHUNKS_PER_REGION)]
    sizes = {pack: (uuid.uuid4(), CHUNK_BYTES) for pack in range(CHUNKS_PER_REGION)}
    data = region.encode(region.build(5, uuid.uuid4(), chunks, sizes))
    assert len(data) == region.BYTES_MAX
    assert len(region.decode(data, KEY).packs) == CHUNKS_PER_REGION


@given(indexes())
def test_the_plan_reads_every_chunk_once_in_bounds(index: RegionIndex) -> None:
    wanted = list(plan.ranges(index))
    first = index.number * CHUNKS_PER_REGION
    read = [position - first for item in wanted for position, _ in item.chunks]
    zero = [run.first - first + step for run in plan.zero_runs(index) for step in range(run.count)]
    assert sorted(read + zero) == list(range(len(index.chunks)))
    for item in wanted:
        assert 0 < item.length <= plan.RANGE_BYTES_MAX
        assert item.offset + item.length <= item.total_bytes
        for _, chunk in item.chunks:
            assert item.offset <= chunk.offset
            assert chunk.offset + chunk.length <= item.offset + item.length
    assert len(wanted) == len(index.packs)


def stored(data: bytes) -> tuple[Chunk, bytes]:
    frame = Compressor().compress(memoryview(data))
    codec, content = (Codec.RAW, data) if frame is None else (Codec.ZSTD, frame)
    return Chunk(codec, 0, 0, len(content), digest_of(data)), content


@given(st.integers(0, 1000), st.integers(0, CHUNK_BYTES))
def test_a_chunk_comes_back(seed: int, noise: int) -> None:
    data = random.Random(seed).randbytes(noise) + bytes(CHUNK_BYTES - noise)
    chunk, content = stored(data)
    assert chunk.codec == (Codec.RAW if noise > WORTH_BYTES else Codec.ZSTD) or abs(noise - WORTH_BYTES) < 200
    assert bytes(Decompressor().restore(chunk, memoryview(content), KEY)) == data


def test_a_chunk_whose_samples_do_not_compress_is_stored_as_it_is() -> None:
    data = bytearray(random.Random(1).randbytes(CHUNK_BYTES))
    data[2048:20000] = bytes(20000 - 2048)
    assert stored(bytes(data))[0].codec == Codec.RAW
    data[0:1024] = bytes(1024)
    assert stored(bytes(data))[0].codec == Codec.ZSTD


@given(st.sampled_from([0, 500, CHUNK_BYTES]), st.data())
def test_an_altered_chunk_is_found(noise: int, data: st.DataObject) -> None:
    chunk, content = stored(random.Random(1).randbytes(noise) + bytes(CHUNK_BYTES - noise))
    altered = bytearray(content)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = Decompressor().restore(chunk, memoryview(altered), KEY)
    except DataCorrupt as error:
        assert KEY in error.message
    else:  # a bit of a frame's header may mean nothing; then the content is the same
        assert digest_of(found) == chunk.digest


def test_a_frame_that_claims_much_memory_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(DataCorrupt, match=KEY):
        Decompressor().restore(Chunk(Codec.ZSTD, 0, 0, len(bomb), bytes(16)), memoryview(bomb), KEY)


LINEAGE, NAME = uuid.UUID(int=1), uuid.UUID(int=2)
SMALL = region.build(
    3, LINEAGE,
    [Chunk(Codec.RAW, 0, 0, CHUNK_BYTES, bytes(16)), Chunk(Codec.ZSTD, 0, CHUNK_BYTES, 100, bytes(16)), ZERO_CHUNK],
    {0: (NAME, CHUNK_BYTES + 100)},
)  # fmt: skip
"""A chunk as it is, a compressed one behind it, one of zeros."""
PACK_AT = region.HEADER.size
CHUNKS_AT = PACK_AT + region.PACK.size


def edited(offset: int, kind: str, *values: object) -> bytes:
    """The body of SMALL with something else at a place."""
    content = bytearray(region.encode(SMALL)[:-32])
    struct.pack_into(kind, content, offset, *values)
    return bytes(content)


def with_counts(chunks: int, packs: int) -> bytes:
    """A body that has as many of each as it says: zeros, and packs that nothing is in."""
    found = RegionIndex(0, LINEAGE, (region.Pack(NAME, 1, 0, 0),) * packs, (ZERO_CHUNK,) * chunks)
    return region.encode(found)[:-32]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(edited(0, "8s", b"SFREGIOM"), id="another magic"),
        pytest.param(edited(16, "<I", 16384), id="a region beyond the largest volume"),
        pytest.param(with_counts(0, 0), id="no chunk"),
        pytest.param(with_counts(CHUNKS_PER_REGION + 1, 0), id="more chunks than a region has"),
        pytest.param(with_counts(1, 2), id="more packs than chunks"),
        pytest.param(region.encode(SMALL)[:-32] + region.CHUNK.pack(*ZERO_CHUNK), id="a chunk that is not counted"),
        pytest.param(b"SFREGION", id="a magic alone"),
    ],
)
def test_a_header_out_of_bounds_is_refused_even_with_a_right_digest(body: bytes) -> None:
    for decode in (region.decode, region.decode_packs):
        with pytest.raises(DataCorrupt, match=KEY):
            decode(seal(body), KEY)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(edited(CHUNKS_AT + 2 * 32 + 12, "<I", 5), id="zeros that have a length"),
        pytest.param(edited(CHUNKS_AT, "B", 9), id="an unknown codec"),
        pytest.param(edited(CHUNKS_AT + 12, "<I", 100), id="as it is, and shorter"),
        pytest.param(edited(CHUNKS_AT, "B", Codec.ZSTD), id="compressed, and no shorter"),
        pytest.param(edited(CHUNKS_AT + 32 + 12, "<I", 0), id="compressed to nothing"),
        pytest.param(edited(CHUNKS_AT + 32 + 4, "<I", 1), id="in a pack that is not listed"),
        pytest.param(edited(CHUNKS_AT + 32 + 8, "<I", CHUNK_BYTES + 1), id="beyond the end of its pack"),
        pytest.param(with_counts(1, 1), id="a pack that nothing is in"),
        pytest.param(edited(PACK_AT + 20, "<I", 3), id="a pack with less in it than counted"),
        pytest.param(edited(PACK_AT + 24, "<I", CHUNK_BYTES + 99), id="a share below what is needed"),
        pytest.param(edited(PACK_AT + 24, "<I", CHUNK_BYTES + 101), id="a share above the pack's size"),
        pytest.param(edited(PACK_AT + 16, "<I", PACK_BYTES + 1), id="a pack above the largest"),
    ],
)
def test_an_entry_out_of_bounds_is_refused_even_with_a_right_digest(body: bytes) -> None:
    with pytest.raises(DataCorrupt, match=KEY):
        region.decode(seal(body), KEY)


def frame(**parameters: int) -> bytes:
    made = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(**parameters))
    return bytes(made.compress(bytes(CHUNK_BYTES)))


def test_a_frame_that_is_not_one_chunk_is_refused_before_it_is_unpacked() -> None:
    digest = digest_of(bytes(CHUNK_BYTES))
    wrong = {
        "holds no chunk": [frame(write_content_size=0), zstandard.ZstdCompressor().compress(bytes(CHUNK_BYTES + 1))],
        "is damaged": [frame() + b"more", frame()[:-1]],
    }
    for told, frames in wrong.items():
        for content in frames:
            with pytest.raises(DataCorrupt, match=told):
                Decompressor().restore(Chunk(Codec.ZSTD, 0, 0, len(content), digest), memoryview(content), KEY)
