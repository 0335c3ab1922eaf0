"""The JSON objects: what goes in comes out; what was altered is refused, by name."""

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver.core.errors import DataCorrupt, Unsupported
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, REGION_BYTES, VOLUME_BYTES_MAX, regions_of
from driver.store import layout
from driver.transfer import records
from driver.transfer.records import Aborted, Manifest, Named, Pending, RegionEntry, Repository, Tombstone

KEY = "snapshots/x/manifest.json"
ids = st.uuids().map(str)
names = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
times = st.datetimes(timezones=st.just(UTC)).map(lambda time: time.isoformat())
counts = st.integers(0, 2**62)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    lineage = draw(ids)
    size = draw(st.integers(16, 5 * REGION_BYTES // CHUNK_BYTES)) * CHUNK_BYTES

    def region(number: int) -> RegionEntry:
        if draw(st.booleans()):
            return RegionEntry(number)
        digest = hashlib.sha256(draw(st.binary(max_size=4))).hexdigest()
        return RegionEntry(number, layout.region(lineage, draw(ids)), draw(st.integers(1, 2**24 - 1)), digest)

    return Manifest(
        snapshot=Named(draw(ids), draw(names)), volume=Named(draw(ids), draw(names)), lineage=lineage,
        node=draw(names), created=draw(times), committed=draw(times), size_bytes=size,
        logical_block_size=draw(st.sampled_from([512, 4096])),
        regions=tuple(region(number) for number in range(regions_of(size))), stored_chunks=draw(counts),
        zero_chunks=draw(counts), stored_bytes=draw(counts), uploaded_bytes=draw(counts), requests=draw(counts),
        statistics=draw(st.none() | st.dictionaries(names, counts, max_size=3)),
    )  # fmt: skip


Record = Repository | Pending | Manifest | Aborted | Tombstone


def without_kind(record: Record) -> Record:
    return msgspec.structs.replace(record, kind="")


@given(manifests())
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert without_kind(records.decode_manifest(records.encode(manifest), KEY)) == manifest


@given(manifests())
@settings(max_examples=3)
def test_a_manifest_of_the_largest_volume_comes_back(manifest: Manifest) -> None:
    largest = msgspec.structs.replace(
        manifest, size_bytes=VOLUME_BYTES_MAX, regions=tuple(map(RegionEntry, range(regions_of(VOLUME_BYTES_MAX))))
    )
    found = records.decode_manifest(records.encode(largest), KEY)
    assert isinstance(found, Manifest)
    assert without_kind(found) == largest


@given(ids, ids, names, times)
def test_the_small_records_come_back(one: str, other: str, name: str, time: str) -> None:
    written: list[Record] = [
        Repository(id=one, created=time),
        Pending(snapshot=Named(one, name), volume=Named(other, name), lineage=other, node=name, begun=time, heartbeat=time),
        Aborted(snapshot=one, reason=name, aborted=time),
        Tombstone(snapshot=one, deleted=time),
    ]
    for record in written:
        found: Record = records.decode(records.encode(record), type(record), KEY)  # type: ignore[type-var]
        assert without_kind(found) == record


@given(manifests(), st.data())
def test_a_flipped_bit_is_found(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(records.encode(manifest))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((DataCorrupt, Unsupported), match=KEY):
        records.decode_manifest(bytes(content), KEY)


@given(manifests(), st.data())
def test_a_manifest_cut_short_is_found(manifest: Manifest, data: st.DataObject) -> None:
    content = records.encode(manifest)
    with pytest.raises(DataCorrupt, match=KEY):
        records.decode_manifest(content[: data.draw(st.integers(0, len(content) - 1))], KEY)


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    for content in (data, seal(data)):
        with pytest.raises((DataCorrupt, Unsupported), match=KEY):
            records.decode_manifest(content, KEY)
        with pytest.raises((DataCorrupt, Unsupported), match=KEY):
            records.decode(content, Pending, KEY)


def seal(body: bytes) -> bytes:
    """`body` with a right digest."""
    return body + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        (b'"format":1', b'"format":2'),
        (b'"features":[]', b'"features":["time-travel"]'),
        (b'"cipher":"none"', b'"cipher":"rot13"'),
    ],
)
def test_what_this_version_does_not_know_is_refused(found: bytes, instead: bytes) -> None:
    body = records.encode(Tombstone(snapshot="0" * 8 + "-0000" * 3 + "-" + "0" * 12, deleted="2026-01-01T00:00:00Z"))
    body = body[: body.index(b',"sha256"')]
    assert found in body
    with pytest.raises(Unsupported, match=KEY):
        records.decode(seal(body.replace(found, instead)), Tombstone, KEY)


def test_a_record_of_another_kind_is_refused() -> None:
    stone = records.encode(Tombstone(snapshot="0" * 8 + "-0000" * 3 + "-" + "0" * 12, deleted="2026-01-01T00:00:00Z"))
    with pytest.raises(DataCorrupt, match=KEY):
        records.decode(stone, Aborted, KEY)


@given(manifests())
def test_fields_out_of_bounds_are_refused(manifest: Manifest) -> None:
    replace = msgspec.structs.replace
    elsewhere = RegionEntry(0, "lineages/../../etc/passwd", 5, "0" * 64)
    wrong = [
        replace(manifest, size_bytes=manifest.size_bytes + 1),
        replace(manifest, size_bytes=2**60),
        replace(manifest, logical_block_size=1000),
        replace(manifest, regions=(*manifest.regions, RegionEntry(0))),
        replace(manifest, regions=(elsewhere, *manifest.regions[1:])),
        replace(manifest, created="yesterday"),
        replace(manifest, lineage="../../etc"),
        replace(manifest, requests=-1),
    ]
    for record in wrong:
        with pytest.raises(DataCorrupt, match=KEY):
            records.decode_manifest(records.encode(record), KEY)


def small() -> dict[str, Any]:
    """The fields of a manifest of two regions, the second of zeros."""
    lineage, other = (digit * 8 + "-0000" * 3 + "-" + "0" * 12 for digit in "01")
    time = "2026-01-01T00:00:00Z"
    first = RegionEntry(0, layout.region(lineage, other), 100, "a" * 64, 5)
    manifest = Manifest(
        snapshot=Named(other, "s"), volume=Named(lineage, "v"), lineage=lineage, node="n", created=time, committed=time,
        size_bytes=2 * REGION_BYTES, logical_block_size=4096, regions=(first, RegionEntry(1)), stored_chunks=5,
        zero_chunks=5, stored_bytes=5, uploaded_bytes=5, requests=5,
    )  # fmt: skip
    body = records.encode(manifest)
    return dict(msgspec.json.decode(body[: body.index(b',"sha256":"', -90)] + b"}"))


def decoded(fields: dict[str, Any]) -> Manifest | Aborted:
    return records.decode_manifest(seal(msgspec.json.encode(fields)[:-1]), KEY)


def with_region(number: int, *entry: object) -> dict[str, Any]:
    regions = list(small()["regions"])
    regions[number] = list(entry)
    return {"regions": regions}


INDEX = layout.region(small()["lineage"], small()["snapshot"]["id"])
BOUNDS: dict[str, dict[str, Any]] = {
    "another kind": {"kind": "pending"},
    "a number for a text": {"node": 5},
    "a text for a number": {"requests": "5"},
    "an empty name": {"node": ""},
    "a name that is too long": {"node": "n" * 257},
    "an id that is none": {"snapshot": {"id": "../../x", "name": "s"}},
    "a time that is none": {"created": "in the beginning"},
    "a time without a zone": {"created": "2026-01-01T00:00:00"},
    "a time that is too long": {"created": f"2026-01-01T00:00:00.{'0' * 30}+00:00"},
    "less than nothing": {"stored_bytes": -1},
    "more than is counted": {"stored_bytes": 2**63},
    "no size": {"size_bytes": 0, "regions": []},
    "less than the smallest volume": {"size_bytes": CHUNK_BYTES, "regions": [small()["regions"][0]]},
    "half a chunk": {"size_bytes": 2 * REGION_BYTES - 1},
    "blocks of another size": {"logical_block_size": 1024},
    "a region less": {"regions": small()["regions"][:1]},
    "regions in another order": {"regions": small()["regions"][::-1]},
    "zeros that have a size": with_region(1, 1, None, 5),
    "zeros that have a digest": with_region(1, 1, None, 0, "a" * 64),
    "zeros that have chunks": with_region(1, 1, None, 0, None, 5),
    "an index without a digest": with_region(0, 0, INDEX, 100),
    "an index whose digest is none": with_region(0, 0, INDEX, 100, "z" * 64),
    "an index of another lineage": with_region(0, 0, INDEX.replace("0000", "2222", 1), 100, "a" * 64),
    "an index of less than nothing": with_region(0, 0, INDEX, -1, "a" * 64),
    "an index that is too large": with_region(0, 0, INDEX, 2**24, "a" * 64),
    "more chunks than a region has": with_region(0, 0, INDEX, 100, "a" * 64, CHUNKS_PER_REGION + 1),
}


def test_what_is_within_bounds_is_read() -> None:
    assert isinstance(decoded(small()), Manifest)


@pytest.mark.parametrize("fields", BOUNDS.values(), ids=BOUNDS)
def test_a_field_out_of_bounds_is_refused_even_with_a_right_digest(fields: dict[str, Any]) -> None:
    with pytest.raises(DataCorrupt, match=KEY):
        decoded({**small(), **fields})


def test_a_volume_above_the_largest_is_refused() -> None:
    regions = [[number] for number in range(regions_of(VOLUME_BYTES_MAX + CHUNK_BYTES))]
    with pytest.raises(DataCorrupt, match=KEY):
        decoded({**small(), "size_bytes": VOLUME_BYTES_MAX + CHUNK_BYTES, "regions": regions})
