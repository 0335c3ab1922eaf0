"""The engine service dies in the middle of a call, or between two records: what its successor makes of that."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from driver.core.errors import AlreadyExists, NotFound, StillframeError
from driver.core.ids import snapshot_id
from driver.core.sizes import MIB
from driver.transfer import records
from tests.engines import Engine, engine
from tests.oracle import fill, read_device
from tests.waiting import wait_until

SIZE = 32 * MIB
MOMENTS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


def broken_off(made: Engine, seconds: float, call: str, **arguments: Any) -> None:
    """Kill the service so long after a call began, and wait for its successor."""
    pid = made.call("engine.info")["pid"]

    def ask() -> None:
        with contextlib.suppress(StillframeError, OSError):
            made.call(call, **arguments)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    asking.join()
    wait_until(lambda: made.wait_ready().call("engine.info")["pid"] != pid)


def mounts_of(made: Engine) -> int:
    """FUSE mounts in the engine's mount namespace."""
    assert made.process is not None
    return Path(f"/proc/{made.process.pid}/mounts").read_text().count("fuse.stillframe")


def test_an_attach_that_was_broken_off_is_done_by_the_next(one: Engine) -> None:
    one.call("volume.create", name="v", size_bytes=SIZE)
    for moment in MOMENTS:
        broken_off(one, moment, "volume.attach", name="v")
        device = one.call("volume.attach", name="v")["device"]
        fill(device, SIZE)
        content = bytes(read_device(device, SIZE))
        assert read_device(device, SIZE) == content
        assert mounts_of(one) == 1
        one.call("volume.detach", name="v")
        assert mounts_of(one) == 0


def test_a_snapshot_that_was_broken_off_is_made_or_free_to_be_made(one: Engine) -> None:
    device = one.volume("v", SIZE)
    fill(device, SIZE)
    content = bytes(read_device(device, SIZE))
    for number, moment in enumerate(MOMENTS):
        broken_off(one, moment, "snapshot.create", volume="v", name=f"s{number}")
        wait_until(lambda: is_begun(one, f"s{number}"), told=one.log.read_text)  # noqa: B023
        assert one.wait_snapshot(f"s{number}")["state"] == "committed"
    assert read_device(one.restore(f"s{len(MOMENTS) - 1}", "restored"), SIZE) == content


def is_begun(made: Engine, snapshot: str) -> bool:
    """Not while one that was broken off is being cleaned away."""
    with contextlib.suppress(StillframeError):
        return bool(made.call("snapshot.create", volume="v", name=snapshot))
    return False


@pytest.mark.parametrize("moment", [0.3, 0.4, 0.5, 0.6])
def test_a_snapshot_is_committed_whenever_the_service_dies(one: Engine, moment: float) -> None:
    fill(one.volume("v", SIZE), SIZE)
    one.call("snapshot.create", volume="v", name="s")
    broken_off(one, moment, "engine.info")
    assert one.wait_snapshot("s")["state"] == "committed"
    one.call("snapshot.create", volume="v", name="next")
    assert one.wait_snapshot("next")["state"] == "committed"


def rewrite(made: Engine, snapshot: str, **changes: Any) -> Path:
    """Change a session's record behind a stopped engine's back."""
    record = made.state / "sessions" / snapshot_id(snapshot) / "session.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    return record


def test_what_was_committed_but_not_noted_is_committed(one: Engine) -> None:
    """The engine died between the PUT of the manifest and its own record of it."""
    fill(one.volume("v", SIZE), SIZE)
    one.call("snapshot.create", volume="v", name="s")
    one.wait_snapshot("s")
    one.kill()
    rewrite(one, "s", state="uploading", uploaded=None, statistics=None)
    one.start()
    shown = one.wait_snapshot("s")
    assert (shown["state"], shown["stored_bytes"]) == ("committed", SIZE)


def test_what_was_begun_but_never_answered_is_forgotten(one: Engine) -> None:
    fill(one.volume("v", SIZE), SIZE)
    one.call("snapshot.create", volume="v", name="s")
    one.wait_snapshot("s")
    manifest = one.state.parent / "repository" / "snapshots" / snapshot_id("s") / "manifest.json"
    one.kill()
    rewrite(one, "s", state="preparing")
    manifest.unlink()
    one.start()

    def is_forgotten() -> bool:
        try:
            assert one.call("snapshot.show", snapshot="s")["state"] == "uploading"
        except NotFound:
            return True
        return False

    wait_until(is_forgotten)
    wait_until(lambda: not (manifest.parent / "pending.json").exists())


def test_the_marker_of_a_session_that_is_not_taken_over_stays(one: Engine) -> None:
    """Garbage collection is about to fence it: with the marker away, it would not know of it."""
    fill(one.volume("v", SIZE), SIZE)
    one.call("snapshot.create", volume="v", name="s")
    one.wait_snapshot("s")
    snapshots = one.state.parent / "repository" / "snapshots"
    pending = records.decode((snapshots / snapshot_id("s") / "pending.json").read_bytes(), records.Pending, "pending")
    silent = (datetime.now(UTC) - timedelta(hours=13)).isoformat()
    named = records.Named(snapshot_id("silent"), "silent")
    left = records.encode(msgspec.structs.replace(pending, snapshot=named, begun=silent, heartbeat=silent))
    path = snapshots / named.id / "pending.json"
    path.parent.mkdir()
    path.write_bytes(left)
    with pytest.raises(AlreadyExists, match="not heard of since"):
        one.call("snapshot.create", volume="v", name="silent")
    assert path.read_bytes() == left


def test_a_lost_session_is_fenced(one: Engine) -> None:
    """A commit that is still under way when its engine is dead comes too late; the marker goes with the fence."""
    one.arguments = (*one.arguments, "--upload-rate", "1Mi")
    one.stop()
    one.start()
    fill(one.volume("v", SIZE), SIZE)
    one.call("snapshot.create", volume="v", name="s")
    pending = one.state.parent / "repository" / "snapshots" / snapshot_id("s") / "pending.json"
    assert pending.exists()
    one.kill()
    one.start()
    assert one.wait_snapshot("s")["state"] == "failed"
    manifest = pending.with_name("manifest.json")
    assert isinstance(records.decode_manifest(manifest.read_bytes(), "m"), records.Aborted)
    assert pending.exists()
