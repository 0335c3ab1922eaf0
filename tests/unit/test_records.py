"""Records of volumes and sessions that are damaged are found out when they are read, and no other one is lost with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import DataCorrupt
from driver.core.ids import new_id
from driver.engine.records import Folder, SessionRecord, VolumeRecord

MIB = 1 << 20


def volume(name: str) -> VolumeRecord:
    base = {"repository": "local", "id": new_id(), "created": "2026-01-01T00:00:00+00:00"}
    return VolumeRecord(new_id(), name, MIB, "thin", 4096, "2026-01-01T00:00:00+00:00", new_id(), base=base)


def session(name: str) -> SessionRecord:
    parent = {"id": new_id(), "created": "2026-01-01T00:00:00+00:00", "size_bytes": MIB}
    return SessionRecord(
        new_id(), name, "local", new_id(), "v", new_id(), MIB, 4096, "throttle", 32 * MIB, parent=parent,
        statistics={"throttle_seconds": 0.5},
    )  # fmt: skip


def with_fields(**fields: Any) -> Callable[[Path], None]:
    def damage(record: Path) -> None:
        record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))

    return damage


def without(field: str) -> Callable[[Path], None]:
    def damage(record: Path) -> None:
        content = json.loads(record.read_text())
        del content[field]
        record.write_text(json.dumps(content))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda record: record.write_bytes(record.read_bytes()[:-2]),
    "no text": lambda record: record.write_bytes(b"\xff\xfe"),
    "no object": lambda record: record.write_bytes(b"[]"),
    "text for a number": with_fields(size_bytes="many"),
    "a fraction": with_fields(size_bytes=1.5),
    "a boolean for a number": with_fields(base_number=True),
    "null": with_fields(lineage=None),
    "a list for an object": with_fields(base=[], parent=[]),
    "an object that lacks something": with_fields(base={}, parent={}),
    "a field less": without("name"),
    "another one's": with_fields(id=new_id()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_found_out(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = Folder(tmp_path)
    volumes, sessions = [volume("a"), volume("b")], [session("a"), session("b")]
    for volume_record in volumes:
        folder.volume_folder(volume_record.id).mkdir()
        folder.save_volume(volume_record)
    for session_record in sessions:
        folder.save_session(session_record)
    assert folder.volumes() == ({record.name: record for record in volumes}, {})
    assert sorted(record.name for record in folder.sessions()) == ["a", "b"]
    damage(folder.volume_folder(volumes[0].id) / "volume.json")
    damage(folder.session_folder(sessions[0].id) / "session.json")
    found, damaged = folder.volumes()
    assert found == {"b": volumes[1]} and list(damaged) == [volumes[0].id]
    assert str(tmp_path / "volumes" / volumes[0].id) in damaged[volumes[0].id].message and damaged[volumes[0].id].hint
    assert list(folder.sessions()) == [sessions[1]]


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "engine_id": 7}'])
def test_an_engine_without_an_id_does_not_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(DataCorrupt, match="no engine_id"):
        Folder(tmp_path).engine_id()


def test_a_state_folder_that_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    made = Folder(tmp_path / "state").path
    assert {oct(path.stat().st_mode & 0o777) for path in (made, *made.rglob("*"))} == {"0o700"}
