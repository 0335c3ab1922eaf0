"""A stranger's reader, made from docs/format.md, restores what Stillframe stored, and refuses what it must."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from tests.reader import Refused, restore
from tests.transfer.rig import Rig
from tests.transfer.test_incremental import changed, next_session, send
from tests.transfer.volumes import make_volume


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


def test_it_refuses_a_deleted_snapshot(rig: Rig) -> None:
    session = rig.session(rig.add_folder(), make_volume(20))
    session.send()
    rig.run("delete", {"repository": "folder", "snapshot": session.id})
    with pytest.raises(Refused, match="deleted"):
        restore(rig.folder / "repository-folder", session.id, rig.folder / "restored")
    session.close()
