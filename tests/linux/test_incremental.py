"""Incremental snapshots on the real kernel: whatever happened to engine and volume in between, each restores exactly."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import StillframeError
from driver.core.sizes import CHUNK_BYTES, MIB
from tests.engines import Engine, engine, run
from tests.oracle import fill, read_device
from tests.waiting import wait_until

SIZE = 64 * MIB
CHUNKS = SIZE // CHUNK_BYTES


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine() as made:
        yield made


class Volume:
    """A volume, and what must be on it."""

    def __init__(self, made: Engine, name: str, size_bytes: int = SIZE) -> None:
        self.engine = made
        self.name = name
        self.content = bytearray(size_bytes)
        self.device = made.volume(name, size_bytes)
        self.random = random.Random(5)

    def write(self, *chunks: int) -> None:
        """4 KiB into each of these chunks."""
        fd = os.open(self.device, os.O_RDWR | os.O_SYNC)
        try:
            for chunk in chunks:
                at = chunk * CHUNK_BYTES + self.random.randrange(16) * 4096
                data = self.random.randbytes(4096)
                assert os.pwrite(fd, data, at) == len(data)
                self.content[at : at + len(data)] = data
        finally:
            os.close(fd)

    def snapshot(self, name: str, **arguments: Any) -> dict[str, Any]:
        self.engine.call("snapshot.create", volume=self.name, name=name, **arguments)
        shown = self.engine.wait_snapshot(name)
        assert shown["state"] == "committed", shown
        return shown

    def attach(self) -> None:
        self.device = self.engine.call("volume.attach", name=self.name)["device"]


def check(volume: Volume, snapshot: str) -> None:
    """The snapshot restores to what is on the volume now."""
    made = volume.engine
    restored = made.restore(snapshot, f"{snapshot}-again")
    assert read_device(restored, len(volume.content)) == bytes(volume.content)
    made.call("volume.detach", name=f"{snapshot}-again")
    made.call("volume.delete", name=f"{snapshot}-again")


def swept(shown: dict[str, Any]) -> int:
    """How many chunks a snapshot read."""
    return int(shown["session"]["swept_bytes"]) // CHUNK_BYTES


def test_each_reads_what_was_written_since_the_last(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(0, CHUNKS, 2))
    first = volume.snapshot("first")
    assert first["parent"] is None
    for number, written in enumerate(((1, 2, 3), (), (CHUNKS - 1,))):
        volume.write(*written)
        name = f"next-{number}"
        shown = volume.snapshot(name)
        assert shown["parent"] is not None
        assert swept(shown) == len(written)
        check(volume, name)
    whole = volume.snapshot("whole", full=True)
    assert whole["parent"] is None and swept(whole) == CHUNKS
    check(volume, "whole")


def test_discards_and_growth_are_changes(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    run("blkdiscard", "--offset", str(8 * MIB), "--length", str(MIB), volume.device)
    volume.content[8 * MIB : 9 * MIB] = bytes(MIB)
    one.call("volume.grow", name="data", size_bytes=SIZE + MIB)
    volume.content.extend(bytes(MIB))
    volume.write(CHUNKS + 3)
    assert swept(volume.snapshot("second")) == 2 * MIB // CHUNK_BYTES
    check(volume, "second")


def test_a_detach_and_a_clean_stop_remember_what_was_written(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    volume.write(7)
    one.call("volume.detach", name="data")
    volume.attach()
    volume.write(9)
    one.stop()
    one.start()
    assert swept(volume.snapshot("second")) == 2
    volume.attach()
    check(volume, "second")


def test_after_a_crash_every_chunk_is_compared_and_only_what_differs_is_uploaded(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    volume.write(3, 4)
    one.kill()
    one.clean_devices()
    one.start()
    volume.attach()
    shown = volume.snapshot("second")
    assert swept(shown) == CHUNKS
    assert 0 < int(str(shown["uploaded_bytes"])) < 4 * CHUNK_BYTES
    check(volume, "second")


def test_what_a_snapshot_that_failed_did_not_save_is_in_the_next() -> None:
    with engine("--upload-rate", "1Mi") as one:
        volume = Volume(one, "data")
        volume.write(*range(0, CHUNKS, 8))
        volume.snapshot("first")
        fill(volume.device, 8 * MIB)
        volume.content[: 8 * MIB] = read_device(volume.device, 8 * MIB)
        one.call("snapshot.create", volume="data", name="second")
        volume.write(CHUNKS - 1)
        one.call("snapshot.delete", snapshot="second")
        shown = volume.snapshot("third")
        assert swept(shown) == 8 * MIB // CHUNK_BYTES + 1
        check(volume, "third")


def test_a_restored_volume_builds_on_what_it_was_restored_from(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    first = volume.snapshot("first")
    other = Volume.__new__(Volume)
    other.__dict__.update(volume.__dict__)
    other.name, other.content = "other", bytearray(volume.content)
    other.device = one.restore("first", "other", size_bytes=SIZE + MIB)
    other.content.extend(bytes(MIB))
    other.write(11)
    shown = other.snapshot("of-other")
    assert shown["parent"] == first["id"]
    assert swept(shown) == 1 + MIB // CHUNK_BYTES
    check(other, "of-other")
    one.call("snapshot.delete", snapshot="first")
    check(other, "of-other")


def test_a_deleted_parent_is_followed_by_an_older_one_that_is_compared(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    first = volume.snapshot("first")
    volume.write(1)
    volume.snapshot("second")
    one.call("snapshot.delete", snapshot="second")
    volume.write(2)
    shown = volume.snapshot("third")
    assert shown["parent"] == first["id"]
    assert swept(shown) == CHUNKS
    check(volume, "third")


def test_a_damaged_parent_fails_one_snapshot_and_the_next_is_full(one: Engine) -> None:
    volume = Volume(one, "data")
    volume.write(*range(CHUNKS))
    volume.snapshot("first")
    (index,) = (one.state.parent / "repository").glob("lineages/*/regions/*")
    index.write_bytes(index.read_bytes()[:-1])
    volume.write(1)
    one.call("snapshot.create", volume="data", name="second")
    failed = one.wait_snapshot("second")
    assert failed["state"] == "failed" and failed["error"]["kind"] == "DataCorrupt"
    assert index.name in failed["error"]["message"]
    assert volume.snapshot("third")["parent"] is None
    check(volume, "third")


def victims(made: Engine, kind: str) -> list[int]:
    with contextlib.suppress(StillframeError, OSError):
        if kind == "service":
            return [made.call("engine.info")["pid"]]
        return [pid for key, pid in made.processes("data").items() if key.startswith(kind) and pid]
    return []


def strike(made: Engine, kind: str, snapshot: str) -> bool:
    """Kill what there is of that kind. Whether there was any, or the snapshot is complete: this may have been late."""
    found = victims(made, kind)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found) or made.call("snapshot.show", snapshot=snapshot)["state"] != "uploading"


@pytest.mark.parametrize("kind", ["serve", "sweep", "service"])
def test_deaths_during_an_incremental_snapshot(kind: str) -> None:
    with engine("--upload-rate", "8Mi") as one:
        chunks = CHUNKS // 2
        volume = Volume(one, "data", SIZE // 2)
        volume.write(*range(chunks))
        volume.snapshot("first")
        for number in range(3):
            volume.write(*range(number, chunks, 4))
            one.call("snapshot.create", volume="data", name=f"next-{number}")
            at_cut = bytes(volume.content)
            wait_until(lambda: strike(one, kind, f"next-{number}"))  # noqa: B023
            volume.write(*range(number + 1, chunks, 4))
            one.wait_ready()
            shown = one.wait_snapshot(f"next-{number}")
            assert shown["state"] == "committed" and swept(shown) <= chunks // 2
            restored = one.restore(f"next-{number}", f"next-{number}-again")
            assert read_device(restored, SIZE // 2) == at_cut
            one.call("volume.detach", name=f"next-{number}-again")


def test_state_files_say_what_is_trusted(one: Engine) -> None:
    """While a volume is open, nothing on disk claims to know what changed."""
    volume = Volume(one, "data")
    volume.write(1)
    volume.snapshot("first")
    folder = Path(one.state / "volumes" / one.call("volume.show", name="data")["id"])
    assert not (folder / "changes").exists()
    one.call("volume.detach", name="data")
    assert (folder / "changes").exists()
    volume.attach()
    assert not (folder / "changes").exists()


def test_what_is_needed_of_a_mostly_dead_pack_is_sent_again(one: Engine) -> None:
    volume = Volume(one, "data", 16 * MIB)
    for name, count in (("first", 16), ("second", 14)):
        fill(volume.device, count * MIB)
        volume.content[:] = read_device(volume.device, 16 * MIB)
        volume.snapshot(name)
    assert swept(volume.snapshot("third")) == 2 * MIB // CHUNK_BYTES
    check(volume, "third")
    assert swept(volume.snapshot("fourth")) == 0
    check(volume, "fourth")
