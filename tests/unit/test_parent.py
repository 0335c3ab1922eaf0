"""What a session builds on is believed only if it is what the parent's manifest names, wherever it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import DataCorrupt
from driver.core.sizes import CHUNK_BYTES
from driver.store import layout
from driver.store.directory import DirectoryStore
from driver.store.port import Options
from driver.store.retry import PATIENT, Retrying
from driver.transfer import region
from driver.transfer.parent import Parent
from driver.transfer.records import Manifest, Named, RegionEntry
from driver.transfer.region import Chunk, Codec, RegionIndex
from driver.transfer.spool import Spool

CHUNKS = 32
LINEAGE = uuid.UUID(int=1)
KEY = layout.region(str(LINEAGE), str(uuid.UUID(int=2)))
DIGEST = bytes(range(16))
INDEX = region.build(
    0, LINEAGE, [Chunk(Codec.RAW, 0, place * CHUNK_BYTES, CHUNK_BYTES, DIGEST) for place in range(CHUNKS)],
    {0: (uuid.UUID(int=3), CHUNKS * CHUNK_BYTES)},
)  # fmt: skip


def manifest_of(index: RegionIndex) -> Manifest:
    """Of a parent of 32 chunks whose only region is that."""
    data = region.encode(index)
    entry = RegionEntry(0, KEY, len(data), hashlib.sha256(data).hexdigest(), CHUNKS)
    one, time = str(uuid.UUID(int=4)), "2026-01-01T00:00:00Z"
    return Manifest(
        snapshot=Named(one, "s"), volume=Named(one, "v"), lineage=str(LINEAGE), node="n", created=time, committed=time,
        size_bytes=CHUNKS * CHUNK_BYTES, logical_block_size=4096, regions=(entry,), stored_chunks=CHUNKS, zero_chunks=0,
        stored_bytes=1, uploaded_bytes=1, requests=1,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Retrying:
    return Retrying(DirectoryStore(str(tmp_path), Options()), PATIENT)


@pytest.fixture
def spool() -> Iterator[Spool]:
    fd = os.memfd_create("spool")
    yield Spool(fd, CHUNKS)
    os.close(fd)


def alter(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_an_index_that_is_what_the_manifest_names_is_believed(store: Retrying, spool: Spool) -> None:
    store.put(KEY, [region.encode(INDEX)])
    assert Parent(store, manifest_of(INDEX), spool).digest(5) == DIGEST


@pytest.mark.parametrize(
    "wrong", [{"number": 1}, {"lineage": uuid.UUID(int=7)}, {"chunks": (*INDEX.chunks, region.ZERO_CHUNK)}],
    ids=["number", "lineage", "chunks"],
)  # fmt: skip
def test_the_index_of_another_region_is_refused(store: Retrying, spool: Spool, wrong: dict[str, Any]) -> None:
    other = dataclasses.replace(INDEX, **wrong)
    store.put(KEY, [region.encode(other)])
    with pytest.raises(DataCorrupt, match="it describes another region"):
        Parent(store, manifest_of(other), spool).digest(5)


def test_an_index_that_the_manifest_does_not_name_is_refused(store: Retrying, spool: Spool) -> None:
    """Though it is whole."""
    chunks = (INDEX.chunks[0]._replace(digest=bytes(16)), *INDEX.chunks[1:])
    store.put(KEY, [region.encode(dataclasses.replace(INDEX, chunks=chunks))])
    with pytest.raises(DataCorrupt, match="not what the manifest says"):
        Parent(store, manifest_of(INDEX), spool).digest(0)


def test_an_index_that_was_altered_in_the_spool_is_fetched_again(store: Retrying, spool: Spool) -> None:
    store.put(KEY, [region.encode(INDEX)])
    spool.put_parent(0, alter(region.encode(INDEX)))
    assert Parent(store, manifest_of(INDEX), spool).digest(0) == DIGEST
    assert spool.parent(0) == region.encode(INDEX)


def test_an_index_that_is_gone_is_said(store: Retrying, spool: Spool) -> None:
    with pytest.raises(DataCorrupt, match=f"{KEY} is missing"):
        Parent(store, manifest_of(INDEX), spool).digest(0)
