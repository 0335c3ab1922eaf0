"""Senders and supervisors that are killed: what was sealed arrives all the same."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from driver.core.errors import FailedPrecondition, Internal, NotFound, RepositoryMissing, SnapshotFailed
from driver.host.locks import RecordLocks
from driver.transfer.packbuffer import SENDER_LOCK_BYTE, Header, PackBuffers
from tests.servers import S3Server, credentials_file
from tests.transfer.proxy import DROP_ANSWER, PASS, Action, Proxy
from tests.transfer.rig import Rig
from tests.transfer.volumes import make_volume, random_volume


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, zombies included."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def sender_of(rig: Rig) -> int:
    """The sender's process, once it holds its memory."""
    assert rig.supervisor is not None
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        for child in children(rig.supervisor.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "sf-send":
                    return child
        time.sleep(0.01)
    raise TimeoutError("no sender")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_sender_killed_again_and_again(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = make_volume(1200, seed=6)
    session = rig.session(repository, volume, upload_rate_bytes=30_000_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    for kill in range(4):
        wait_for(lambda: session.feed.packs.get(Header.STORED_CHUNKS) >= kill * 200)  # noqa: B023
        os.kill(sender_of(rig), signal.SIGKILL)
    session.feed.may_end.set()
    rig.wait(job)
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_a_session_does_not_go_on_in_another_place(rig: Rig) -> None:
    """The repository's name stands for another folder when the sender's successor begins: neither has a snapshot."""
    repository = rig.add_folder()
    volume = random_volume(600)
    session = rig.session(repository, volume, upload_rate_bytes=10_000_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    wait_for(lambda: session.feed.packs.get(Header.STORED_CHUNKS) > 0)
    other = rig.repositories[rig.add_folder("other")]
    rig.run("check", {"repository": "other"})
    here = rig.repositories[repository]
    rig.add(repository, **other)
    os.kill(sender_of(rig), signal.SIGKILL)
    with pytest.raises(RepositoryMissing, match="not the repository that the snapshot was begun in"):
        rig.wait(job)
    assert rig.run("list", {"repository": "other"})["snapshots"] == []
    assert not (rig.folder / "repository-other" / "lineages").exists()
    rig.add(repository, **here)
    session.feed.may_end.set()
    rig.wait(session.start_send())
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_a_session_does_not_begin_in_one_place_and_send_to_another(rig: Rig) -> None:
    repository = rig.add_folder()
    session = rig.session(repository, make_volume(20))
    session.begin()
    rig.add(repository, **rig.repositories[rig.add_folder("other")])
    rig.run("check", {"repository": "other"})
    session.feed.start()
    with pytest.raises(RepositoryMissing, match="not the repository that the snapshot was begun in"):
        rig.wait(session.start_send())
    assert not (rig.folder / "repository-other" / "lineages").exists()
    session.close()


def test_a_folder_that_is_away_is_waited_for(rig: Rig) -> None:
    """As if it were a mount: in its place is an empty one, into which nothing goes."""
    repository = rig.add_folder()
    volume = random_volume(600)
    session = rig.session(repository, volume, upload_rate_bytes=15_000_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    wait_for(lambda: session.feed.packs.get(Header.STORED_CHUNKS) > 0)
    place, away = rig.folder / "repository-folder", rig.folder / "away"
    empty = rig.folder / "empty"
    empty.mkdir()
    exchange(place, empty)
    session.feed.may_end.set()
    retries = session.feed.packs.get(Header.RETRIES)
    wait_for(lambda: session.feed.packs.get(Header.RETRIES) > retries + 1)
    assert list(place.iterdir()) == []
    shutil.copytree(empty, away)  # the same repository as another inode, as after another mount
    exchange(place, away)
    assert rig.wait(job)["state"] == "committed"
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def exchange(one: Path, other: Path) -> None:
    """Swap two folders at once."""
    at_here, exchange = -100, 2  # AT_FDCWD, fcntl.h; RENAME_EXCHANGE, linux/fs.h
    assert ctypes.CDLL(None).renameat2(at_here, bytes(one), at_here, bytes(other), exchange) == 0


def test_a_sender_that_always_dies_gives_up(rig: Rig) -> None:
    session = rig.session(rig.add_folder(), random_volume(64), upload_rate_bytes=100_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    for _ in range(6):
        victim = sender_of(rig)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{victim}").exists())  # noqa: B023
    with pytest.raises(Internal, match="died too often"):
        rig.wait(job)
    session.close()


def test_a_supervisor_that_is_killed_takes_its_sender_along(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = make_volume(500, seed=7)
    session = rig.session(repository, volume, upload_rate_bytes=15_000_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    sender = sender_of(rig)
    wait_for(lambda: session.feed.packs.get(Header.STORED_CHUNKS) > 0)
    rig.stop(signal.SIGKILL)
    rig.start()
    wait_for(lambda: not Path(f"/proc/{sender}").exists())
    with pytest.raises(NotFound):
        rig.call("status", job=job, wait_seconds=0)
    session.feed.may_end.set()
    rig.wait(session.start_send())
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_a_second_sender_waits_for_the_first(rig: Rig) -> None:
    repository = rig.add_folder()
    volume = random_volume(300, seed=8)
    session = rig.session(repository, volume, upload_rate_bytes=10_000_000)
    session.begin()
    session.feed.start()
    jobs = [session.start_send(), session.start_send()]
    for job in jobs:
        assert rig.wait(job)["state"] == "committed"
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_a_sender_begins_when_the_last_thread_of_the_dead_one_is_gone(rig: Rig) -> None:
    """What holds the lock may still be sending from the buffers."""
    repository = rig.add_folder()
    volume = random_volume(100, seed=9)
    session = rig.session(repository, volume)
    session.begin()
    session.feed.start()
    requests = PackBuffers(session.fd).get(Header.REQUESTS)
    dead = RecordLocks(session.fd)
    dead.acquire(SENDER_LOCK_BYTE)
    job = session.start_send()
    sender_of(rig)
    time.sleep(0.5)
    assert PackBuffers(session.fd).get(Header.REQUESTS) == requests, "it has begun"
    dead.close()
    assert rig.wait(job)["state"] == "committed"
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()


def test_cancel_returns_when_the_sender_is_dead(rig: Rig) -> None:
    session = rig.session(rig.add_folder(), random_volume(64), upload_rate_bytes=100_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    job = session.start_send()
    sender = sender_of(rig)
    rig.call("cancel", job=job)
    assert not Path(f"/proc/{sender}").exists()
    with pytest.raises(FailedPrecondition, match="cancelled"):
        rig.wait(job)
    rig.call("forget", job=job)
    with pytest.raises(NotFound):
        rig.call("cancel", job=job)
    session.close()


def test_stopping_the_supervisor_leaves_nothing(rig: Rig) -> None:
    session = rig.session(rig.add_folder(), random_volume(64), upload_rate_bytes=100_000)
    session.begin()
    session.feed.may_end.clear()
    session.feed.start()
    session.start_send()
    sender = sender_of(rig)
    rig.stop()
    assert not Path(f"/proc/{sender}").exists()
    assert not (rig.state / "run" / "transfer.sock").exists()
    session.close()


def test_a_sender_that_dies_right_after_the_commit(rig: Rig, versitygw: S3Server) -> None:
    """The manifest is in the store, nobody was told: the next sender finds it and is content."""
    proxy = Proxy(versitygw.port)
    bucket = versitygw.make_bucket()
    repository = rig.add("s3", url=f"s3://{bucket}", endpoint=proxy.endpoint, credentials=str(credentials_file(rig.folder)))
    volume = make_volume(60, seed=9)
    session = rig.session(repository, volume)
    session.begin()
    killed: list[int] = []

    def decide(method: str, path: str) -> Action:
        if method == "GET" and "manifest.json" in path and not killed:
            killed.append(sender_of(rig))
            os.kill(killed[0], signal.SIGKILL)
        if method == "PUT" and proxy.count("PUT", "manifest.json") == 1 and "manifest.json" in path:
            return DROP_ANSWER
        return PASS

    proxy.decide = decide
    session.feed.start()
    summary = rig.wait(session.start_send())
    assert killed
    assert summary["state"] == "committed"
    assert rig.restore(repository, session.id, len(volume)) == volume
    session.close()
    proxy.close()


@pytest.mark.parametrize("kind", ["folder", "versitygw"])
def test_a_snapshot_deleted_in_the_making_is_never_committed(rig: Rig, kind: str, request: pytest.FixtureRequest) -> None:
    repository = rig.add_folder() if kind == "folder" else rig.add_s3(request.getfixturevalue(kind))
    session = rig.session(repository, make_volume(20))
    session.begin()
    session.feed.start()
    rig.run("delete", {"repository": repository, "snapshot": session.id})
    with pytest.raises(SnapshotFailed, match="deleted"):
        rig.wait(session.start_send())
    assert rig.run("list", {"repository": repository})["snapshots"] == []
    rig.run("delete", {"repository": repository, "snapshot": session.id})
    session.close()
