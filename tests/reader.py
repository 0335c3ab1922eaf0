"""A reader of the repository format, written from docs/format.md alone: it imports nothing of Stillframe.

`python tests/reader.py FOLDER SNAPSHOT TARGET` restores a snapshot, by name or UUID, from a folder into the file TARGET.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

import zstandard

CHUNK = 65536
REGION_CHUNKS = 16384
NAMES = uuid.UUID("5b1d3a52-5c1f-5d0e-9b7e-2f6c1f0a7e11")


class Refused(Exception):
    """What a reader must not go on with."""


def json_object(path: Path, kind: str) -> dict[str, Any]:
    data = path.read_bytes()
    body, tail = data[:-78], data[-78:]
    if tail != b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n':
        raise Refused(f"{path}: its digest is wrong")
    content: dict[str, Any] = json.loads(data)
    if content["format"] != 1 or content["features"] or content["cipher"] != "none":
        raise Refused(f"{path}: format {content['format']}, features {content['features']}, cipher {content['cipher']}")
    if content["kind"] != kind:
        raise Refused(f"{path}: a {content['kind']}, not a {kind}")
    return content


def index(path: Path, size: int, sha256: str, lineage: str, number: int, count: int) -> tuple[list[Any], list[Any]]:
    """The packs (UUID, size, live, share) and the `count` chunks (codec, pack, offset, length, digest) of a region."""
    data = path.read_bytes()
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Refused(f"{path}: its digest is wrong")
    magic, version, cipher, features, region, chunks, packs, chunk_bytes, of = struct.unpack_from("<8sHHIIIII16s", data)
    if (magic, version, cipher, features, chunk_bytes) != (b"SFREGION", 1, 0, 0, CHUNK):
        raise Refused(f"{path}: version {version}, cipher {cipher}, features {features}")
    if (region, chunks, uuid.UUID(bytes=of)) != (number, count, uuid.UUID(lineage)):
        raise Refused(f"{path}: of another region")
    found = list(struct.iter_unpack("<16sIII", data[64 : 64 + 28 * packs]))
    return found, list(struct.iter_unpack("<B3xIII16s", data[64 + 28 * packs : 64 + 28 * packs + 32 * chunks]))


def chunk(folder: Path, packs: list[Any], entry: Any) -> bytes:
    codec, pack, offset, length, digest = entry
    if codec == 1:
        return bytes(CHUNK)
    path = folder / str(uuid.UUID(bytes=packs[pack][0]))
    if path.stat().st_size != packs[pack][1]:
        raise Refused(f"{path}: its size is wrong")
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if codec == 3:
        data = zstandard.ZstdDecompressor().decompress(data, max_output_size=CHUNK)
    if len(data) != CHUNK or hashlib.sha256(data).digest()[:16] != digest:
        raise Refused(f"{path}: the chunk at {offset} does not match its digest")
    return data


def restore(folder: Path, snapshot: str, target: Path) -> None:
    """Raises Refused, FileNotFoundError."""
    try:
        snapshot = str(uuid.UUID(snapshot))
    except ValueError:
        snapshot = str(uuid.uuid5(NAMES, snapshot))
    if (folder / "stillframe.json").exists():
        json_object(folder / "stillframe.json", "repository")
    manifest = json_object(folder / f"snapshots/{snapshot}/manifest.json", "snapshot")
    if (folder / f"snapshots/{snapshot}/deleted.json").exists():
        raise Refused(f"{snapshot} was deleted")
    lineage = folder / "lineages" / manifest["lineage"]
    with target.open("wb") as file:
        file.truncate(manifest["size_bytes"])
        for number, key, size, sha256, stored in manifest["regions"]:
            if key is None:
                continue
            count = min(REGION_CHUNKS, manifest["size_bytes"] // CHUNK - number * REGION_CHUNKS)
            packs, chunks = index(folder / key, size, sha256, manifest["lineage"], number, count)
            if stored != sum(entry[0] != 1 for entry in chunks):
                raise Refused(f"{key}: {stored} chunks of data are said to be there")
            for place, entry in enumerate(chunks):
                if entry[0] != 1:
                    file.seek((number * REGION_CHUNKS + place) * CHUNK)
                    file.write(chunk(lineage / "packs", packs, entry))


if __name__ == "__main__":
    restore(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
