"""Histories in which what is known of a volume's changes could be about another snapshot than it seems."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from driver.core.errors import DeviceError
from driver.transfer import records
from tests.engines import Engine, engine
from tests.linux.test_incremental import CHUNKS, Volume, check, swept
from tests.oracle import read_device
from tests.waiting import wait_until


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


def folder_of(volume: Volume) -> Path:
    shown = volume.engine.call("volume.show", name=volume.name)
    return volume.engine.state / "volumes" / str(shown["id"])


def rewrite(path: Path, **fields: Any) -> None:
    """Change fields of a record of an engine that does not run."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def crash(one: Engine) -> None:
    one.kill()
    one.clean_devices()
    (one.state / "run/transfer.sock").unlink(missing_ok=True)  # so that `start` waits for the new one


def kill_service(one: Engine) -> None:
    pid = one.call("engine.info")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: one.wait_ready().call("engine.info")["pid"] != pid)


def snapshot_into(repository: str, volume: Volume, name: str) -> dict[str, Any]:
    volume.engine.call("snapshot.create", volume=volume.name, name=name, repository=repository)
    shown = volume.engine.wait_snapshot(name, repository=repository)
    assert shown["state"] == "committed", shown
    return shown


def test_a_late_answer_about_an_old_session_is_no_base(one: Engine) -> None:
    """The engine dies right after a commit, and its repository is away until another snapshot was made elsewhere."""
    other = one.state.parent / "other"
    other.mkdir()
    one.repository("other", f"file://{other}")
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    first = snapshot_into("local", volume, "first")
    folder = folder_of(volume)
    crash(one)
    rewrite(one.state / "sessions" / first["id"] / "session.json", state="uploading", statistics=None, uploaded=None)
    rewrite(folder / "volume.json", base=None)
    snapshots, away = one.state.parent / "repository/snapshots", one.state.parent / "away"
    snapshots.rename(away)
    snapshots.symlink_to(snapshots.name)  # ELOOP: it does not answer
    one.start()
    volume.attach()
    volume.write(3, 4, 5)
    snapshot_into("other", volume, "second")
    snapshots.unlink()
    away.rename(snapshots)
    settled = one.wait_snapshot("first", repository="local")
    assert settled["state"] == "committed"
    volume.write(9)
    snapshot_into("local", volume, "third")
    restored = one.restore("third", "again", repository="local")
    assert read_device(restored, len(volume.content)) == bytes(volume.content)


def test_a_note_of_what_changed_does_not_come_back(one: Engine) -> None:
    """The service dies in a detach, between the note and the end of the memory; a snapshot opens the volume."""
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    folder = folder_of(volume)
    one.call("volume.detach", name="data")
    left = (folder / "changes").read_bytes()
    one.stop()
    one.start(None, "--upload-rate", "1Mi")
    one.call("snapshot.create", volume="data", name="second", full=True)
    (folder / "changes").write_bytes(left)  # as that death would have left both
    kill_service(one)
    volume.attach()
    volume.write(7)
    crash(one)
    one.start()
    assert one.wait_snapshot("second")["state"] == "failed"
    volume.attach()
    shown = volume.snapshot("third")
    assert swept(shown) == CHUNKS
    check(volume, "third")


def test_a_disk_that_somebody_else_wrote_to_is_compared(one: Engine) -> None:
    """An operator brings back a part of the file from elsewhere while the volume is detached."""
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    folder = folder_of(volume)
    one.call("volume.detach", name="data")
    with (folder / "disk").open("r+b") as file:
        file.seek(5 * 65536)
        file.write(b"brought back")
    volume.content[5 * 65536 : 5 * 65536 + 12] = b"brought back"
    volume.attach()
    assert swept(volume.snapshot("second")) == CHUNKS
    check(volume, "second")


def test_a_note_that_cannot_be_read_is_none(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(0, CHUNKS, 2))
    volume.snapshot("first")
    note = folder_of(volume) / "changes"
    one.call("volume.detach", name="data")
    note.unlink()
    note.symlink_to(note.name)  # ELOOP, in the place of a bad sector
    volume.attach()
    assert not note.is_symlink()
    assert swept(volume.snapshot("second")) == CHUNKS
    assert "what changed on volume data" in one.log.read_text()


def test_a_clock_that_went_back_does_not_bring_back_a_damaged_parent(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    first = volume.snapshot("first")
    folder = folder_of(volume)
    crash(one)
    later = "2099-01-01T00:00:00.000000+00:00"
    rewrite(one.state / "sessions" / first["id"] / "session.json", created=later)
    rewrite(folder / "volume.json", base={"repository": "local", "id": first["id"], "created": later})
    _date_manifest(one, first["id"], later)
    (index,) = (one.state.parent / "repository").glob("lineages/*/regions/*")
    index.unlink()
    one.start()
    volume.attach()
    volume.write(1)
    one.call("snapshot.create", volume="data", name="second")
    failed = one.wait_snapshot("second")
    assert failed["state"] == "failed" and "next snapshot" in failed["error"]["hint"], failed
    assert volume.snapshot("third")["parent"] is None
    check(volume, "third")


def _date_manifest(one: Engine, snapshot: str, created: str) -> None:
    path = one.state.parent / "repository" / "snapshots" / snapshot / "manifest.json"
    found = records.decode_manifest(path.read_bytes(), "manifest.json")
    assert isinstance(found, records.Manifest)
    path.write_bytes(records.encode(msgspec.structs.replace(found, created=created)))


@contextlib.contextmanager
def no_packs(one: Engine) -> Iterator[None]:
    """Meanwhile no restore comes to its end: a store that cannot be read is asked again."""
    for folder in (one.state.parent / "repository").glob("lineages/*/packs"):
        away = folder.rename(folder.with_name("away"))
        folder.symlink_to(folder.name)  # ELOOP
        try:
            yield
        finally:
            folder.unlink()
            away.rename(folder)


def test_a_restore_ends_although_it_cannot_be_noted_that_nothing_changed(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(0, CHUNKS, 3))
    volume.snapshot("first")
    with no_packs(one):
        begun = one.call("snapshot.restore", snapshot="first", volume="again")
        note = one.state / "volumes" / begun["volume"]["id"] / "changes"
        note.symlink_to(note.name)  # ELOOP, in the place of a full disk
    wait_until(lambda: one.call("volume.show", name="again")["state"] == "available", told=one.log.read_text)
    volume.name = "again"
    volume.attach()
    volume.write(1)
    assert swept(volume.snapshot("second")) == CHUNKS
    check(volume, "second")


def test_what_changed_is_known_after_a_growth_without_a_device(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    volume.write(5)
    one.call("volume.detach", name="data")
    one.call("volume.grow", name="data", size_bytes=len(volume.content) + 65536)
    volume.content.extend(bytes(65536))
    assert swept(volume.snapshot("second")) == 2
    volume.attach()
    check(volume, "second")


def test_a_restore_whose_end_cannot_be_noted_has_failed(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(1)
    volume.snapshot("first")
    with no_packs(one):
        begun = one.call("snapshot.restore", snapshot="first", volume="again")
        record = one.state / "volumes" / begun["volume"]["id"] / "volume.json.new"
        record.symlink_to(record.name)  # ELOOP, in the place of a full disk
    with pytest.raises(DeviceError, match="cannot be noted"):
        one.wait_job(begun["job"])
