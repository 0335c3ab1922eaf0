"""A stranger's reader, made from docs/format.md, restores what Stillframe stored, and refuses what it must."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from driver.core.errors import DataCorrupt
from driver.core.sizes import CHUNK_BYTES
from driver.store import layout
from driver.transfer import records, region
from tests.reader import Refused, restore
from tests.transfer.rig import Rig
from tests.transfer.test_incremental import changed, next_session, send
from tests.transfer.volumes import make_volume, random_volume


def test_it_restores_a_snapshot_and_one_that_builds_on_it(rig: Rig) -> None:
    repository = rig.folder / "repository-folder"
    volume = make_volume(400)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    again = changed(volume, written := range(0, 400, 11))
    second = next_session(rig, first, again, written)
    send(second)
    for session, content in ((first, volume), (second, again)):
        restore(repository, session.name, target := rig.folder / "restored")
        assert target.read_bytes() == content
        session.close()


@pytest.mark.parametrize("part", ["manifest.json", "regions", "packs"])
def test_it_refuses_what_was_altered(rig: Rig, part: str) -> None:
    repository = rig.folder / "repository-folder"
    session = rig.session(rig.add_folder(), make_volume(50))
    session.send()
    (path,) = [found for found in Path(repository).rglob("*") if found.is_file() and part in str(found)]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises((Refused, zstandard.ZstdError)):
        restore(repository, session.id, rig.folder / "restored")
    session.close()


@pytest.mark.parametrize("wrong", [{"number": 1}, {"lineage": uuid.UUID(int=7)}, {"chunks": 30}])
def test_it_refuses_the_index_of_another_region(rig: Rig, wrong: dict[str, Any]) -> None:
    """One that is whole in itself, and that the manifest names; so does Stillframe. What it lacks is not zero."""
    session = rig.session(rig.add_folder(), random_volume(30) + bytes(10 * CHUNK_BYTES))
    session.send()
    folder = rig.folder / "repository-folder"
    path = folder / layout.manifest(session.id)
    manifest = records.decode_manifest(path.read_bytes(), "manifest")
    assert isinstance(manifest, records.Manifest)
    (entry,) = manifest.regions
    index = region.decode((folder / str(entry.key)).read_bytes(), "index")
    if "chunks" in wrong:
        wrong = {"chunks": index.chunks[: wrong["chunks"]]}
    data = region.encode(dataclasses.replace(index, **wrong))
    (folder / str(entry.key)).write_bytes(data)
    named = msgspec.structs.replace(entry, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    path.write_bytes(records.encode(msgspec.structs.replace(manifest, regions=(named,))))
    with pytest.raises(Refused, match="of another region"):
        restore(folder, session.id, rig.folder / "restored")
    with pytest.raises(DataCorrupt, match="it describes another region"):
        rig.restore("folder", session.id, 40 * CHUNK_BYTES)
    session.close()


def test_it_refuses_a_deleted_snapshot(rig: Rig) -> None:
    session = rig.session(rig.add_folder(), make_volume(20))
    session.send()
    rig.run("delete", {"repository": "folder", "snapshot": session.id})
    with pytest.raises(Refused, match="deleted"):
        restore(rig.folder / "repository-folder", session.id, rig.folder / "restored")
    session.close()
