"""A session goes to a repository, and comes back byte by byte."""

from __future__ import annotations

import os
import random
import time

import pytest

from driver.core.errors import AlreadyExists, NotFound
from driver.core.sizes import CHUNK_BYTES, MIB, VOLUME_BYTES_MAX
from tests.transfer.rig import Rig
from tests.transfer.volumes import make_volume, random_volume

KINDS = ["folder", "rclone_s3", "versitygw"]


def add_repository(rig: Rig, kind: str, request: pytest.FixtureRequest) -> str:
    return rig.add_folder() if kind == "folder" else rig.add_s3(request.getfixturevalue(kind), kind.replace("_", "-"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_comes_back(rig: Rig, kind: str, request: pytest.FixtureRequest) -> None:
    repository = add_repository(rig, kind, request)
    volume = make_volume(700)
    session = rig.session(repository, volume)
    begun = session.begin()
    assert begun["conditional_put"] is (kind != "rclone_s3")
    (pending,) = rig.run("list", {"repository": repository})["snapshots"]
    assert (pending["state"], pending["name"]) == ("uploading", session.name)

    summary = session.send()

    assert summary.pop("again") == []
    assert summary["state"] == "committed"
    assert summary["size_bytes"] == len(volume)
    stored = sum(volume[at : at + CHUNK_BYTES] != bytes(CHUNK_BYTES) for at in range(0, len(volume), CHUNK_BYTES))
    assert summary["stored_bytes"] == stored * CHUNK_BYTES
    assert summary["requests"] <= len(volume) // (16 * MIB) + 1 + 12
    assert rig.run("show", {"repository": repository, "snapshot": session.id}) == summary
    assert rig.run("list", {"repository": repository})["snapshots"] == [summary]
    verified = rig.run("verify", {"repository": repository, "snapshot": session.id})
    assert verified["chunks"] == 700
    assert rig.restore(repository, session.id, len(volume)) == volume
    with pytest.raises(AlreadyExists):
        session.begin()
    rig.run("delete", {"repository": repository, "snapshot": session.id})
    assert rig.run("list", {"repository": repository})["snapshots"] == []
    assert rig.run("show", {"repository": repository, "snapshot": session.id})["state"] == "deleted"
    with pytest.raises(NotFound):
        rig.run("verify", {"repository": repository, "snapshot": session.id})
    session.close()


def test_chunks_in_any_order(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = make_volume(600, seed=2)
    session = rig.session(repository, volume)
    random.Random(3).shuffle(session.feed.order)
    session.send()
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_a_volume_of_zeros_is_a_manifest(rig: Rig) -> None:
    repository = rig.add_folder()
    session = rig.session(repository, bytes(16 * CHUNK_BYTES))
    assert session.send()["stored_bytes"] == 0
    assert not (rig.folder / "repository-folder" / "lineages").exists()
    assert rig.restore(repository, session.id, 16 * CHUNK_BYTES) == bytes(16 * CHUNK_BYTES)
    session.close()


def test_the_largest_volume(rig: Rig) -> None:
    """Zero runs of up to 2**28 chunks, and one chunk of data at the very end."""
    repository = rig.add_folder()
    chunks = VOLUME_BYTES_MAX // CHUNK_BYTES
    session = rig.session(repository, bytes(16 * CHUNK_BYTES))
    session.spec["volume"]["size_bytes"] = VOLUME_BYTES_MAX
    session.begin()
    session.feed.zero(0, chunks - 1)
    session.feed.data(chunks - 1, b"last" * (CHUNK_BYTES // 4))
    session.feed.finish()
    summary = rig.wait(session.start_send())
    assert (summary["size_bytes"], summary["stored_bytes"]) == (VOLUME_BYTES_MAX, CHUNK_BYTES)
    assert rig.run("verify", {"repository": repository, "snapshot": session.id})["chunks"] == chunks
    assert os.fstat(session.spool).st_blocks * 512 < 4 * MIB
    session.close()


def test_restore_into_a_larger_file(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = make_volume(100, seed=4)
    session = rig.session(repository, volume)
    session.send()
    larger = rig.restore(repository, session.id, len(volume) + 3 * MIB)
    assert larger == volume + bytes(3 * MIB)
    session.close()


def test_restore_through_direct_io(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = make_volume(300, seed=5)
    session = rig.session(repository, volume)
    session.send()
    path = rig.folder / "direct"
    path.write_bytes(bytes(len(volume)))
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    rig.run("restore", {"repository": repository, "snapshot": session.id}, [fd])
    os.close(fd)
    assert path.read_bytes() == volume
    session.close()


def test_statistics_go_into_the_manifest(rig: Rig) -> None:
    repository = rig.add_folder()
    figures = rig.folder / "figures.json"
    figures.write_text('{"preimages": 7}')
    session = rig.session(repository, make_volume(20), statistics_path=str(figures))
    assert session.send()["session"] == {"preimages": 7}
    session.close()


def test_an_upload_rate_is_kept(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = random_volume(8 * 16)
    session = rig.session(repository, volume, upload_rate_bytes=8_000_000)
    session.begin()
    session.feed.start()
    begun = time.monotonic()
    rig.wait(session.start_send())
    assert time.monotonic() - begun > 0.5
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()
