"""docs/format.md: its example is what the code reads and writes."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

from driver.core.sizes import CHUNK_BYTES
from driver.transfer import records, region
from driver.transfer.chunks import Decompressor
from driver.transfer.records import Manifest
from driver.transfer.region import Codec

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()


def example() -> tuple[bytes, bytes, bytes]:
    """The frame, the index and the manifest of the document's example."""
    dumps: list[bytearray] = []
    for address, row in re.findall(r"^    ([0-9a-f]{4})  ([0-9a-f ]+)$", TEXT, re.MULTILINE):
        if address == "0000":
            dumps.append(bytearray())
        dumps[-1] += bytes.fromhex(row)
    (manifest,) = re.findall(r'^    (\{"kind":"snapshot".*\})$', TEXT, re.MULTILINE)
    return bytes(dumps[0]), bytes(dumps[1]), manifest.encode() + b"\n"


def test_the_example_is_read() -> None:
    frame, data, content = example()
    manifest = records.decode_manifest(content, "manifest")
    assert isinstance(manifest, Manifest)
    assert records.encode(manifest) == content
    (entry,) = manifest.regions
    assert (entry.size_bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    index = region.decode(data, "index")
    assert region.encode(index) == data
    pack = frame + b"".join(hashlib.sha256(struct.pack("<I", number)).digest() for number in range(2048))
    assert index.packs[0].size_bytes == len(pack)
    found = {}
    for position, chunk in enumerate(index.chunks):
        if chunk.codec != Codec.ZERO:
            stored = memoryview(pack)[chunk.offset : chunk.offset + chunk.length]
            found[position] = bytes(Decompressor().restore(chunk, stored, "pack"))
    assert sorted(found) == [0, 5]
    assert found[0] == (b"Stillframe" * 6554)[:CHUNK_BYTES]
