"""A store that fails, and one that lies: what passes is waited for, what does not is told, nothing wrong comes back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core import settings
from driver.core.errors import AccessDenied, DataCorrupt, Internal, NotFound, OutOfSpace, Unsupported
from driver.core.sizes import CHUNK_BYTES
from driver.store.open import open_store
from driver.store.retry import Policy
from driver.transfer.packbuffer import Header
from tests.servers import S3Server, credentials_file, serve_rclone
from tests.transfer.proxy import CUT, DROP, DROP_ANSWER, NO_ROUTE, PASS, SKEWED, Action, Proxy
from tests.transfer.rig import Rig
from tests.transfer.volumes import make_volume, random_volume
from tests.waiting import wait_until


@pytest.fixture
def proxy(rclone_s3: S3Server) -> Iterator[Proxy]:
    made = Proxy(rclone_s3.port)
    yield made
    made.close()


def through(rig: Rig, proxy: Proxy, server: S3Server) -> str:
    url = f"s3://{server.make_bucket()}/p"
    return rig.add("s3", url=url, endpoint=proxy.endpoint, credentials=str(credentials_file(rig.folder)))


def test_failures_that_pass_are_waited_for(rig: Rig, proxy: Proxy, rclone_s3: S3Server) -> None:
    repository = through(rig, proxy, rclone_s3)
    volume = random_volume(600, seed=11)
    session = rig.session(repository, volume)
    session.begin()
    actions: list[Action] = [500, 503, DROP, DROP_ANSWER, NO_ROUTE, SKEWED, 500]
    proxy.decide = lambda method, path: actions.pop() if method == "PUT" and actions else PASS
    session.feed.start()
    rig.wait(session.start_send())
    assert not actions
    assert session.feed.packs.get(Header.RETRIES) == 7
    proxy.decide = lambda method, path: 503 if method == "GET" and proxy.count("GET", "packs") in (2, 4) else PASS
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


@pytest.mark.parametrize("action", [CUT, NO_ROUTE])
@pytest.mark.parametrize("part", ["stillframe.json", "manifest.json", "/regions/", "/packs/"])
def test_an_answer_that_is_broken_or_not_the_store_s_is_asked_for_again(
    rig: Rig, proxy: Proxy, rclone_s3: S3Server, part: str, action: Action
) -> None:
    repository = through(rig, proxy, rclone_s3)
    volume = random_volume(100, seed=21)
    session = rig.session(repository, volume)
    session.send()
    actions = iter([action])
    proxy.decide = lambda method, path: next(actions, PASS) if method == "GET" and part in path else PASS
    assert rig.restore(repository, session.id, len(volume)) == volume
    assert next(actions, PASS) is PASS
    session.close()


@pytest.mark.parametrize(("status", "error"), [(403, AccessDenied), (404, NotFound), (400, Unsupported)])
def test_failures_that_stay_end_the_session(
    rig: Rig, proxy: Proxy, rclone_s3: S3Server, status: int, error: type[Exception]
) -> None:
    session = rig.session(through(rig, proxy, rclone_s3), random_volume(600, seed=12))
    session.begin()
    proxy.decide = lambda method, path: status if proxy.count("PUT", "/packs/") > 1 else PASS
    session.feed.start()
    with pytest.raises(error):
        rig.wait(session.start_send())
    session.close()


def test_the_lost_answer_of_a_commit_is_looked_up(rig: Rig, versitygw: S3Server) -> None:
    proxy = Proxy(versitygw.port)
    repository = through(rig, proxy, versitygw)
    volume = make_volume(60, seed=13)
    session = rig.session(repository, volume)
    session.begin()

    def decide(method: str, path: str) -> Action:
        return DROP_ANSWER if method == "PUT" and "manifest" in path and proxy.count("PUT", "manifest") == 1 else PASS

    proxy.decide = decide
    session.feed.start()
    assert rig.wait(session.start_send())["state"] == "committed"
    assert proxy.count("PUT", "manifest") == 2
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()
    proxy.close()


def test_an_outage_in_the_middle(rig: Rig) -> None:
    server = serve_rclone()
    repository = rig.add_s3(server)
    volume = random_volume(400, seed=14)
    session = rig.session(repository, volume, upload_rate_bytes=20_000_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    wait_until(lambda: session.feed.packs.get(Header.STORED_CHUNKS))
    server.stop()
    session.feed.may_end.set()
    wait_until(lambda: session.feed.packs.get(Header.RETRIES) >= 2)
    assert rig.call("status", job=job, wait_seconds=0)["state"] == "running"
    server.start()
    rig.wait(job)
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()
    server.stop()


def test_the_requests_of_a_snapshot(rig: Rig, proxy: Proxy, rclone_s3: S3Server) -> None:
    volume = random_volume(1024, seed=15)
    session = rig.session(through(rig, proxy, rclone_s3), volume)
    session.begin()
    before = len(proxy.seen)
    session.feed.start()
    summary = rig.wait(session.start_send())
    assert len(proxy.seen) - before <= 4 + 1 + 5
    assert proxy.count("PUT", "/packs/") == 4
    assert proxy.count("PUT", "/regions/") == 1
    assert proxy.count("HEAD", "/lineages/") == 0
    assert summary["requests"] >= 6
    session.close()


def objects(folder: Path, part: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and part in str(path)]


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def make_longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["packs/", "regions/", "manifest.json"])
def test_damage_is_told_by_the_name_of_the_object(rig: Rig, part: str) -> None:
    repository = rig.add_folder()
    folder = rig.folder / "repository-folder"
    volume = make_volume(300, seed=16)
    session = rig.session(repository, volume)
    session.send()
    (path, *_) = objects(folder, part)
    content = path.read_bytes()
    wanted = {"repository": repository, "snapshot": session.id}
    for damage in (cut_short, make_longer, alter):
        path.write_bytes(content)
        damage(path)
        with pytest.raises(DataCorrupt) as caught:
            rig.run("verify", wanted)
        assert str(path.relative_to(folder)) in caught.value.message
        assert caught.value.hint
    with pytest.raises(DataCorrupt, match=str(path.relative_to(folder))):
        rig.restore(repository, session.id, len(volume))
    (listed,) = rig.run("list", {"repository": repository})["snapshots"]
    assert listed["state"] == ("failed" if part == "manifest.json" else "committed")
    path.unlink()
    error, says = (NotFound, f"no complete snapshot {session.id}") if part == "manifest.json" else (DataCorrupt, path.name)
    with pytest.raises(error, match=says):
        rig.run("verify", wanted)
    path.write_bytes(content)
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_an_index_of_another_snapshot_is_refused(rig: Rig) -> None:
    repository = rig.add_folder()
    folder = rig.folder / "repository-folder"
    sessions = [rig.session(repository, make_volume(40, seed=seed)) for seed in (17, 18)]
    contents = []
    for session in sessions:
        session.send()
        (path,) = objects(folder, f"{session.spec['lineage']}/regions/")
        contents.append((path, path.read_bytes()))
    for path, content in zip([contents[1][0], contents[0][0]], [contents[0][1], contents[1][1]], strict=True):
        path.write_bytes(content)
    for session in sessions:
        with pytest.raises(DataCorrupt, match="not what the manifest says"):
            rig.run("verify", {"repository": repository, "snapshot": session.id})
        session.close()


def test_a_chunk_that_was_never_sealed_is_no_zero(rig: Rig) -> None:
    session = rig.session(rig.add_folder(), random_volume(100))
    session.feed.order.remove(57)
    session.begin()
    session.feed.start()
    with pytest.raises(Internal, match="chunk 57 of region 0 was never sent"):
        rig.wait(session.start_send())
    assert rig.run("show", {"repository": "folder", "snapshot": session.id})["state"] == "uploading"
    session.close()


def test_without_conditional_puts_only_what_is_committed_can_be_deleted(rig: Rig, rclone_s3: S3Server) -> None:
    repository = rig.add_s3(rclone_s3)
    session = rig.session(repository, random_volume(16))
    session.begin()
    wanted = {"repository": repository, "snapshot": session.id}
    with pytest.raises(Unsupported, match="conditional"):
        rig.run("delete", wanted)
    rig.run("delete", {**wanted, "only_writer": True})
    assert rig.run("show", wanted)["state"] == "deleted"
    session.close()


def test_a_full_store_says_that_a_deletion_needs_room_too(rig: Rig, proxy: Proxy, rclone_s3: S3Server) -> None:
    repository = through(rig, proxy, rclone_s3)
    session = rig.session(repository, random_volume(16))
    session.send()
    proxy.decide = lambda method, path: 507 if method == "PUT" else PASS
    with pytest.raises(OutOfSpace, match="HTTP 507") as caught:
        rig.run("delete", {"repository": repository, "snapshot": session.id})
    assert "deletion writes" in caught.value.hint
    session.close()


@pytest.mark.parametrize("status", [400, 501])
def test_what_cannot_be_deleted_at_once_is_deleted_one_by_one(
    rig: Rig, proxy: Proxy, rclone_s3: S3Server, status: int
) -> None:
    repository = through(rig, proxy, rclone_s3)
    store = open_store(settings.repository(rig.state, repository), Policy(0.0))
    for number in range(3):
        store.put(f"lineages/{number}", [b"x"])
    proxy.decide = lambda method, path: status if method == "POST" else PASS
    store.delete_many(["lineages/0", "lineages/2", "lineages/9"])
    assert [item.key for item in store.list("lineages/").objects] == ["lineages/1"]
    proxy.decide = lambda method, path: 403 if method == "POST" else PASS
    with pytest.raises(AccessDenied):
        store.delete_many(["lineages/1"])
    assert store.head("lineages/1") is not None
    store.close()


def test_two_sessions_of_one_name(rig: Rig) -> None:
    """Only one of them is committed, whoever began first."""
    repository = rig.add_folder()
    one, other = (rig.session(repository, make_volume(20, seed=seed)) for seed in (19, 20))
    other.id = other.spec["snapshot"]["id"] = one.id
    one.begin()
    other.spec["repository_id"] = one.spec["repository_id"]
    for session in (one, other):
        session.feed.start()
    results = []
    jobs = [one.start_send(), other.start_send()]

    def ended(job: str) -> str:
        try:
            return str(rig.wait(job)["state"])
        except Exception as error:
            return type(error).__name__

    threads = [threading.Thread(target=lambda job=job: results.append(ended(job))) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["SnapshotFailed", "committed"]
    one.close()
    other.close()


def test_zero_in_the_middle_of_data(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = random_volume(10) + bytes(300 * CHUNK_BYTES) + random_volume(10, seed=2)
    session = rig.session(repository, volume)
    session.send()
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()
