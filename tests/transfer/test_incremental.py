"""Snapshots that build on others: what is uploaded, what is shared, what is refused, and every byte compared."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import DataCorrupt, Internal, RepositoryMissing
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION
from driver.transfer import records
from driver.transfer.packbuffer import Header
from driver.transfer.records import Manifest
from tests.servers import S3Server, credentials_file
from tests.transfer.feed import Feed
from tests.transfer.proxy import Proxy
from tests.transfer.rig import Rig, Session
from tests.transfer.test_deaths import sender_of, wait_for
from tests.transfer.volumes import make_volume, random_volume


def changed(volume: bytes, chunks: Iterable[int], seed: int = 9) -> bytes:
    """The volume after a write of random bytes to each of `chunks`."""
    content = bytearray(volume)
    rng = random.Random(seed)
    for chunk in chunks:
        content[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES] = rng.randbytes(CHUNK_BYTES)
    return bytes(content)


def next_session(rig: Rig, before: Session, volume: bytes, order: Iterable[int] | None, **changes: Any) -> Session:
    """A session of the same volume that builds on `before`. `order`: what its sweep reads; None is everything."""
    of = before.spec
    session = rig.session(of["repository"], volume, **{"lineage": of["lineage"], **changes})
    session.spec["volume"]["id"] = of["volume"]["id"]
    session.spec["snapshot"]["created"] = "2026-01-03T03:04:05.678901+00:00"
    session.feed = Feed(session.fd, volume, order)
    session.spec["parents"] = [{"id": before.id, "created": of["snapshot"]["created"]}]
    return session


def send(session: Session) -> dict[str, Any]:
    """Begin with the parents that were offered, send with the one that was taken."""
    parent = session.begin()["parent"]
    assert parent is not None
    session.spec["parent"] = {key: parent[key] for key in ("id", "created")}
    session.spec["conditional_put"] = True
    thread = session.feed.start()
    result = session.rig.wait(session.start_send())
    thread.join()
    return result


def manifest_of(rig: Rig, snapshot: str) -> Manifest:
    data = (rig.folder / f"repository-folder/snapshots/{snapshot}/manifest.json").read_bytes()
    found = records.decode_manifest(data, "manifest.json")
    assert isinstance(found, Manifest)
    return found


@pytest.mark.parametrize("kind", ["folder", "versitygw"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "compared"])
def test_only_what_changed_is_uploaded(rig: Rig, kind: str, known: bool, request: pytest.FixtureRequest) -> None:
    """Whether it is known what was written, or every chunk has to be compared."""
    repository = rig.add_folder() if kind == "folder" else rig.add_s3(request.getfixturevalue(kind))
    volume = random_volume(300)
    first = rig.session(repository, volume)
    first.send()
    again = changed(volume, written := (0, 7, 299))
    second = next_session(rig, first, again, written if known else None)
    result = send(second)
    assert result["parent"] == first.id
    assert 3 * CHUNK_BYTES < result["uploaded_bytes"] < 4 * CHUNK_BYTES
    packs = 1 if known else 2
    assert result["requests"] == 5 + 3 + packs, "to begin; the parent's index, packs, an index, the manifest"
    assert result["stored_bytes"] == len(volume)
    for session, content in ((first, volume), (second, again)):
        assert rig.restore(repository, session.id, len(content)) == content
    first.close()
    second.close()


def test_equal_bytes_are_no_change(rig: Rig) -> None:
    """Chunks that were written again with the same bytes, and zeros that are zeros again."""
    volume = make_volume(200)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    second = next_session(rig, first, volume, range(50, 90))
    result = send(second)
    before, after = manifest_of(rig, first.id), manifest_of(rig, second.id)
    assert after.regions == before.regions
    assert result["uploaded_bytes"] < 4096
    first.close()
    second.close()


def test_regions_that_nothing_was_written_to_are_shared_and_not_read(rig: Rig) -> None:
    """Of a volume of three regions one changes; the others' indexes may even be away while it is uploaded."""
    chunks = 2 * CHUNKS_PER_REGION + 40
    first = rig.session(rig.add_folder(), bytes(16 * CHUNK_BYTES))
    first.spec["volume"]["size_bytes"] = chunks * CHUNK_BYTES
    first.begin()
    content = random.Random(4)
    first.feed.data(0, content.randbytes(CHUNK_BYTES))
    first.feed.zero(1, CHUNKS_PER_REGION - 1)
    first.feed.data(CHUNKS_PER_REGION, content.randbytes(CHUNK_BYTES))
    first.feed.zero(CHUNKS_PER_REGION + 1, chunks - CHUNKS_PER_REGION - 1)
    first.feed.finish()
    rig.wait(first.start_send())
    before = manifest_of(rig, first.id)
    assert [entry.stored_chunks for entry in before.regions] == [1, 1, 0]
    away = rig.folder / f"repository-folder/{before.regions[0].key}"
    away.rename(rig.folder / "away")

    second = next_session(rig, first, bytes(16 * CHUNK_BYTES), ())
    second.spec["volume"]["size_bytes"] = chunks * CHUNK_BYTES
    second.feed.data(CHUNKS_PER_REGION + 3, content.randbytes(CHUNK_BYTES))
    send(second)
    (rig.folder / "away").rename(away)
    after = manifest_of(rig, second.id)
    assert after.regions[0] == before.regions[0] and after.regions[2] == before.regions[2]
    assert after.regions[1].stored_chunks == 2
    assert rig.run("verify", {"repository": "folder", "snapshot": second.id})["chunks"] == chunks
    first.close()
    second.close()


def test_a_volume_that_grew(rig: Rig) -> None:
    volume = random_volume(100)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    grown = volume + random_volume(30, seed=3) + bytes(20 * CHUNK_BYTES)
    second = next_session(rig, first, grown, range(100, 150))
    result = send(second)
    assert 30 * CHUNK_BYTES < result["uploaded_bytes"] < 31 * CHUNK_BYTES
    assert rig.restore("folder", second.id, len(grown)) == grown
    first.close()
    second.close()


def test_data_that_became_zeros_and_zeros_that_became_data(rig: Rig) -> None:
    volume = random_volume(50) + bytes(50 * CHUNK_BYTES)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    turned = bytes(50 * CHUNK_BYTES) + random_volume(50, seed=2)
    second = next_session(rig, first, turned, None)
    send(second)
    nothing = next_session(rig, second, bytes(100 * CHUNK_BYTES), range(50, 100))
    nothing.spec["parents"][0]["created"] = second.spec["snapshot"]["created"]
    send(nothing)
    assert rig.restore("folder", second.id, len(turned)) == turned
    assert manifest_of(rig, nothing.id).regions[0].is_zero
    for session in (first, second, nothing):
        session.close()


def test_a_long_chain_is_restored_like_a_full_one(rig: Rig) -> None:
    rng = random.Random(8)
    content = make_volume(150)
    sessions = [rig.session(rig.add_folder(), content)]
    sessions[0].send()
    contents = [content]
    for number in range(8):
        written = sorted(rng.sample(range(150), 12))
        contents.append(changed(contents[-1], written, number))
        session = next_session(rig, sessions[-1], contents[-1], written)
        session.spec["parents"][0]["created"] = sessions[-1].spec["snapshot"]["created"]
        send(session)
        sessions.append(session)
    for gone in sessions[:4]:
        rig.run("delete", {"repository": "folder", "snapshot": gone.id})
    for session, content in zip(sessions[4:], contents[4:], strict=True):
        assert rig.restore("folder", session.id, len(content)) == content
    for session in sessions:
        session.close()


@pytest.mark.parametrize("ailment", ["deleted", "of another time", "of another lineage", "never was", "corrupt"])
def test_what_cannot_be_a_parent_is_none(rig: Rig, ailment: str) -> None:
    volume = random_volume(20)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    second = next_session(rig, first, volume, None)
    path = rig.folder / f"repository-folder/snapshots/{first.id}/manifest.json"
    if ailment == "deleted":
        rig.run("delete", {"repository": "folder", "snapshot": first.id})
    elif ailment == "of another time":
        second.spec["parents"][0]["created"] = "2026-01-01T00:00:00+00:00"
    elif ailment == "of another lineage":
        second.spec["lineage"] = "77777777-7777-4777-8777-777777777777"
    elif ailment == "never was":
        second.spec["parents"][0]["id"] = "77777777-7777-4777-8777-777777777777"
    else:
        path.write_bytes(path.read_bytes().replace(b"vol", b"lov"))
    assert second.begin()["parent"] is None
    pending = (rig.folder / f"repository-folder/snapshots/{second.id}/pending.json").read_bytes()
    assert records.decode(pending, records.Pending, "pending.json").parent is None
    first.close()
    second.close()


def test_where_a_parent_should_be_no_other_repository_is_made(rig: Rig) -> None:
    """As where a file server is not mounted; a full snapshot may begin there anew."""
    volume = random_volume(20)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    second = next_session(rig, first, volume, None)
    (rig.folder / "repository-folder").rename(rig.folder / "away")
    (rig.folder / "repository-folder").mkdir()
    rig.stop()
    rig.start()
    with pytest.raises(RepositoryMissing, match="earlier snapshots of the volume"):
        second.begin()
    assert list((rig.folder / "repository-folder").iterdir()) == []
    second.spec["parents"] = []
    second.begin()
    first.close()
    second.close()


def test_pending_json_names_the_parent_that_was_taken(rig: Rig) -> None:
    volume = random_volume(20)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    second = next_session(rig, first, volume, None)
    gone = {"id": "77777777-7777-4777-8777-777777777777", "created": "2026-01-01T00:00:00+00:00"}
    second.spec["parents"].insert(0, gone)
    assert second.begin()["parent"] == {
        "id": first.id, "created": first.spec["snapshot"]["created"], "size_bytes": len(volume)
    }  # fmt: skip
    pending = (rig.folder / f"repository-folder/snapshots/{second.id}/pending.json").read_bytes()
    assert records.decode(pending, records.Pending, "pending.json").parent == first.id
    first.close()
    second.close()


@pytest.mark.parametrize("ailment", ["gone", "altered"])
def test_a_damaged_parent_fails_the_snapshot_and_names_the_object(rig: Rig, ailment: str) -> None:
    volume = random_volume(40)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    key = manifest_of(rig, first.id).regions[0].key or ""
    path = Path(rig.folder / "repository-folder" / key)
    if ailment == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    second = next_session(rig, first, changed(volume, (3,)), (3,))
    with pytest.raises(DataCorrupt, match=key):
        send(second)
    first.close()
    second.close()


def test_a_sender_that_is_killed_compares_and_shares_as_before(rig: Rig) -> None:
    volume = random_volume(900, seed=6)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    again = changed(volume, range(0, 900, 3))
    second = next_session(rig, first, again, None, upload_rate_bytes=10_000_000)
    second.spec["parent"] = {key: second.begin()["parent"][key] for key in ("id", "created")}
    second.feed.may_end.clear()
    second.feed.start()
    job = second.start_send()
    for kill in range(3):
        wait_for(lambda: second.feed.packs.get(Header.STORED_CHUNKS) >= kill * 60 + 1)  # noqa: B023
        os.kill(sender_of(rig), signal.SIGKILL)
    second.feed.may_end.set()
    result = rig.wait(job)
    assert result["parent"] == first.id
    assert rig.restore("folder", second.id, len(again)) == again
    first.close()
    second.close()


def test_a_snapshot_takes_few_requests_and_no_listing(rig: Rig, versitygw: S3Server) -> None:
    """All requests that the store sees, from the announcement to the commit, after the first session of a supervisor: for
    the repository, the name's pending.json and tombstone, the parent's tombstone, manifest, index; what is stored.
    """
    proxy = Proxy(versitygw.port)
    rig.add(
        "s3", url=f"s3://{versitygw.make_bucket()}/p", endpoint=proxy.endpoint, credentials=str(credentials_file(rig.folder))
    )
    volume = random_volume(800)
    first = rig.session("s3", volume)
    first.send()
    assert len(proxy.seen) <= 800 * CHUNK_BYTES // (16 << 20) + 1 + 16

    before = first
    for written, most in (((), 6), ((7,), 9)):
        volume = changed(volume, written)
        session = next_session(rig, before, volume, written)
        session.spec["parents"][0]["created"] = before.spec["snapshot"]["created"]
        proxy.seen.clear()
        result = send(session)
        assert len(proxy.seen) == result["requests"] <= most, proxy.seen
        assert not [path for method, path in proxy.seen if method == "GET" and "list-type" in path]
        assert result["uploaded_bytes"] < 1 << 20
        before = session
    assert rig.restore("s3", before.id, len(volume)) == volume
    proxy.close()


UNREADABLE = Path("/sys/bus/platform/drivers_probe")
"""A file that even root may not open to read."""


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs sysfs")
def test_a_parent_that_may_not_be_read_is_none(rig: Rig) -> None:
    """As with objects that a lifecycle rule has moved to an archive: what is new can still be stored."""
    volume = random_volume(20)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    path = rig.folder / f"repository-folder/snapshots/{first.id}/manifest.json"
    path.unlink()
    path.symlink_to(UNREADABLE)
    second = next_session(rig, first, volume, None)
    assert second.begin()["parent"] is None
    first.close()
    second.close()


def test_what_is_needed_of_a_mostly_dead_pack_is_sent_again(rig: Rig) -> None:
    """Most of a pack is overwritten: the session says what is left of it, the next one sends that, and needs it no more."""
    volume = random_volume(200)
    first = rig.session(rig.add_folder(), volume)
    assert first.send()["again"] == []
    second = next_session(rig, first, again := changed(volume, range(20, 200)), range(20, 200))
    assert send(second)["again"] == [[0, 20]]
    third = next_session(rig, second, again, range(20))
    third.spec["parents"][0]["created"] = second.spec["snapshot"]["created"]
    result = send(third)
    assert result["again"] == []
    assert 20 * CHUNK_BYTES < result["uploaded_bytes"] < 21 * CHUNK_BYTES
    rig.run("delete", {"repository": "folder", "snapshot": first.id})
    rig.run("delete", {"repository": "folder", "snapshot": second.id})
    packs = rig.folder / f"repository-folder/lineages/{first.spec['lineage']}/packs"
    oldest = min(packs.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    oldest.unlink()
    assert rig.restore("folder", third.id, len(again)) == again
    for session in (first, second, third):
        session.close()


def test_a_chunk_that_got_lost_does_not_pass_for_unchanged(rig: Rig) -> None:
    volume = random_volume(40)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    second = next_session(rig, first, changed(volume, (3, 4)), ())
    second.spec["parent"] = {key: second.begin()["parent"][key] for key in ("id", "created")}
    second.feed.data(3, second.feed.volume[3 * CHUNK_BYTES : 4 * CHUNK_BYTES])
    second.feed.hand_over()
    second.feed.packs.set(Header.SWEPT_CHUNKS, 2)
    second.feed.packs.set(Header.SWEEP_DONE, 1)
    with pytest.raises(Internal, match="of 2 chunks that were to be sent, 1 were"):
        rig.wait(second.start_send())
    first.close()
    second.close()


def test_a_region_that_became_zeros_chunk_by_chunk_is_zero(rig: Rig) -> None:
    volume = random_volume(30)
    first = rig.session(rig.add_folder(), volume)
    first.send()
    second = next_session(rig, first, bytes(len(volume)), ())
    for chunk in range(30):
        second.feed.zero(chunk, 1)
    send(second)
    assert rig.restore("folder", second.id, len(volume)) == bytes(len(volume))
    first.close()
    second.close()
