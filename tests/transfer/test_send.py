"""The sender within this process: its heartbeat, and what it counts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import SnapshotFailed
from driver.core.ids import new_id
from driver.core.settings import Repository
from driver.core.sizes import CHUNK_BYTES, chunks_of
from driver.host.clock import boottime
from driver.store import layout
from driver.store.open import open_store
from driver.store.port import ObjectStore
from driver.store.retry import BRIEF, FOR_EVER, Watch
from driver.transfer import catalog, send, silence
from driver.transfer.packbuffer import Header, PackBuffers
from driver.transfer.rate import Rate
from driver.transfer.records import Named
from driver.transfer.silence import Silence
from driver.transfer.spool import Spool
from tests.transfer.feed import Feed, make_packs
from tests.transfer.volumes import make_volume
from tests.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(Repository("test", f"file://{tmp_path}"), BRIEF)
    yield opened
    opened.close()


def make_sender(store: ObjectStore, volume: bytes) -> tuple[send.Sender, Feed, str]:
    snapshot = new_id()
    of = catalog.Beginning(Named(snapshot, "snap"), Named(new_id(), "vol"), new_id(), "node-1")
    session = send.Session(of, "2026-01-02T03:04:05+00:00", len(volume), 4096)
    fd = make_packs(2)
    packs = PackBuffers(fd)
    spool = Spool(os.memfd_create("spool"), chunks_of(len(volume)))
    sender = send.Sender(store, session, packs, spool, send.Meter(packs), conditions=True)
    return sender, Feed(fd, volume), snapshot


def test_a_deletion_is_heard_of_before_the_end(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "HEARTBEAT_SECONDS", 0.05)
    sender, _, snapshot = make_sender(store, make_volume(16))
    timer = threading.Timer(0.2, lambda: catalog.delete(store, snapshot, conditions=True, only_writer=False))
    catalog.open_repository(store)
    store.put(layout.pending(snapshot), [b"a session"])
    timer.start()
    with pytest.raises(SnapshotFailed, match="deleted"):
        sender.run()  # nobody feeds it: only the heartbeat can end it
    timer.join()


def test_a_heartbeat_that_stops_ends_the_session(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at an error that is none of ours, as of a library: else everybody would take the session for dead but itself."""
    monkeypatch.setattr(send, "HEARTBEAT_SECONDS", 0.02)

    def defective(*arguments: object) -> None:
        raise RuntimeError("refreshed credentials are still expired")

    monkeypatch.setattr(catalog, "write_pending", defective)
    sender, _, _ = make_sender(store, make_volume(16))
    with pytest.raises(SnapshotFailed, match=r"heartbeat stopped: .*still expired"):
        sender.run()  # nobody feeds it


def wait_for(hours: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much later, by the clock of this machine."""
    monkeypatch.setattr(silence, "boottime", lambda: boottime() + hours * 3600)


@pytest.mark.parametrize("hours", [11.9, 12.1])
def test_a_session_that_was_silent_too_long_does_not_commit(
    store: ObjectStore, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, feed, snapshot = make_sender(store, make_volume(16))
    wait_for(hours, monkeypatch)
    Silence(sender._packs)  # as a successor of this sender begins
    feed.start()
    if hours < 12:
        sender.run()
        return
    with pytest.raises(SnapshotFailed, match="for 12 hours the session could not tell"):
        sender.run()
    assert store.get(layout.manifest(snapshot), 10) is None


def test_a_request_that_is_repeated_for_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the commit itself, and the heartbeat: an answer after days must not make the session young again."""
    folder = tmp_path / "repository"
    packs = PackBuffers(make_packs(1))
    meter = send.Meter(packs)
    meter.guard = Silence(packs).check
    store = open_store(Repository("test", f"file://{folder}"), FOR_EVER, watch=Watch(meter.request, meter.retry))
    folder.mkdir()
    store.put("x", [b"x"])
    wait_for(13, monkeypatch)
    requests = packs.get(Header.REQUESTS)
    with pytest.raises(SnapshotFailed, match="for 13 hours"):
        store.put_if_absent("manifest", b"too late")
    assert packs.get(Header.REQUESTS) == requests
    assert not (folder / "manifest").exists()


def test_the_heartbeat_renews_pending(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "HEARTBEAT_SECONDS", 0.02)
    sender, feed, snapshot = make_sender(store, make_volume(16))

    def feed_when_renewed() -> None:
        wait_until(lambda: b'"kind":"pending"' in (store.get(layout.pending(snapshot), 10_000) or b""))
        feed.run()

    feeding = threading.Thread(target=feed_when_renewed)
    feeding.start()
    sender.run()
    feeding.join()


def test_the_counts_in_shared_memory(store: ObjectStore) -> None:
    volume = make_volume(300)
    sender, feed, _ = make_sender(store, volume)
    feed.start()
    manifest = sender.run()
    zero = sum(volume[at : at + CHUNK_BYTES] == bytes(CHUNK_BYTES) for at in range(0, len(volume), CHUNK_BYTES))
    get = feed.packs.get
    assert (get(Header.ZERO_CHUNKS), get(Header.STORED_CHUNKS)) == (zero, 300 - zero)
    assert get(Header.STORED_BYTES) == (300 - zero) * CHUNK_BYTES
    assert (manifest.zero_chunks, manifest.stored_chunks) == (zero, 300 - zero)
    assert 0 < get(Header.UPLOADED_BYTES) < len(volume)


def test_a_rate_never_sleeps_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("driver.transfer.rate.time.sleep", slept.append)
    monkeypatch.setattr("driver.transfer.rate.time.monotonic", lambda: 100.0)
    rate = Rate(1_000_000)
    for _ in range(5):
        rate.wait(250_000)
    assert slept == pytest.approx([0.25, 0.5, 0.75, 1.0])
