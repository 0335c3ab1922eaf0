"""Garbage collection, check, figures and pruning, with a real engine; the store's clock is moved, not waited for."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import AlreadyExists, DataCorrupt, FailedPrecondition, StillframeError, Unsupported
from driver.core.ids import new_id, snapshot_id
from driver.core.settings import Repository
from driver.core.sizes import MIB
from driver.store import layout
from driver.store.open import open_store
from driver.store.retry import Policy
from driver.transfer import collect, records
from tests.engines import Engine, engine
from tests.oracle import fill, read_device
from tests.servers import S3Server, credentials_file, rclone_s3, versitygw

__all__ = ["rclone_s3", "versitygw"]

SIZE = 32 * MIB
DAY = 24 * 3600


def folder(made: Engine) -> Path:
    return made.state.parent / "repository"


def objects(made: Engine) -> set[Path]:
    return {path for path in (folder(made) / "lineages").rglob("*") if path.is_file()}


def age(made: Engine, days: float) -> None:
    """Everything in the folder was written that much earlier."""
    for path in folder(made).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # half written a moment ago, and whole by now
            at = path.stat().st_mtime - days * DAY
            os.utime(path, (at, at))


def job(made: Engine, call: str, **arguments: object) -> dict[str, Any]:
    return made.wait_job(made.call(call, **arguments)["job"])


def gc(made: Engine, **arguments: object) -> dict[str, Any]:
    return job(made, "repository.gc", **arguments)


def snapshot(made: Engine, name: str, volume: str = "v") -> None:
    made.call("snapshot.create", volume=volume, name=name)
    assert made.wait_snapshot(name)["state"] == "committed"


def stillframe(made: Engine, *arguments: str, code: int = 0) -> str:
    """What the command prints, on both streams."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "driver.cli.main", "--state", str(made.state), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_a_deleted_snapshot_left_goes_after_a_day_and_nothing_else() -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        snapshot(made, "one")
        content = read_device(device, SIZE)
        packs = objects(made)
        fill(device, SIZE)
        snapshot(made, "two")
        made.call("snapshot.delete", snapshot="two")
        assert gc(made)["removed"] == 0, "a deleted snapshot is kept for a day"
        age(made, 2)
        told = gc(made, dry_run=True)
        assert told["freed_bytes"] > SIZE // 2
        assert objects(made) > packs
        assert gc(made)["freed_bytes"] == told["freed_bytes"]
        assert objects(made) == packs
        assert gc(made)["removed"] == 0
        assert read_device(made.restore("one", "r"), SIZE) == content
        snapshot(made, "two")  # its name is free again
        assert not list((folder(made) / "snapshots" / "collections").glob("*"))


def test_the_name_of_a_deleted_snapshot_is_taken_until_then() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "one")
        made.call("snapshot.delete", snapshot="one")
        with pytest.raises((AlreadyExists, FailedPrecondition)):
            made.call("snapshot.create", volume="v", name="one")


def test_a_running_session_loses_nothing() -> None:
    with engine("--upload-rate", "8Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        content = read_device(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        while not objects(made):
            time.sleep(0.01)
        age(made, 0.9)
        assert gc(made)["removed"] == 0
        assert job(made, "repository.check")["orphans"]["objects"] == 0
        assert made.wait_snapshot("s")["state"] == "committed"
        assert read_device(made.restore("s", "r"), SIZE) == content


def test_a_session_that_died_is_fenced_and_what_it_left_goes() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "s")
        manifest = folder(made) / layout.manifest(snapshot_id("s"))
        manifest.unlink()  # as if its node had died before the commit
        age(made, 2)
        done = gc(made)
        assert (done["fenced"], objects(made)) == (1, set())
        assert isinstance(records.decode_manifest(manifest.read_bytes(), "m"), records.Aborted)
        age(made, 2)
        assert gc(made)["removed"] == 2
        assert not list((folder(made) / "snapshots").rglob("*.json"))


def test_a_check_names_what_is_missing_or_cut_short_and_whom_that_hurts() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "whole")
        before = objects(made)
        fill(made.call("volume.show", name="v")["device"], SIZE)
        snapshot(made, "hurt")
        found = job(made, "repository.check")
        assert (found["hurt"], found["orphans"]["objects"], found["objects"]) == ([], 0, len(objects(made)))
        new = sorted(objects(made) - before)
        missing, short = [path for path in new if "packs" in path.parts][:2]
        missing.unlink()
        os.truncate(short, 100)
        (hurt,) = job(made, "repository.check")["hurt"]
        assert (hurt["name"], hurt["volume"]["name"]) == ("hurt", "v")
        told = "\n".join(hurt["wrong"])
        assert f"{missing.name} is missing" in told
        assert f"{short.name} has 100 bytes" in told
        text = stillframe(made, "repository", "check", code=9)
        assert f"{missing.name} is missing" in text and "1 snapshot of 2 hurt: hurt" in text
        age(made, 2)
        kept = objects(made)
        with pytest.raises(DataCorrupt, match=f"{missing.name}.*nothing was removed"):
            gc(made)
        assert objects(made) == kept


def damaged(made: Engine, path: Path, data: bytes) -> StillframeError:
    """What garbage collection says of a repository with that object altered; it has removed nothing."""
    before, content = set(folder(made).rglob("*.json")) | objects(made), path.read_bytes()
    path.write_bytes(data)
    age(made, 3)
    try:
        with pytest.raises(StillframeError) as caught:
            gc(made)
    finally:
        path.write_bytes(content)
    assert set(folder(made).rglob("*.json")) | objects(made) == before
    return caught.value


def test_bad_input_is_named_and_removes_nothing() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "s")
        (folder(made) / layout.pack(new_id(), new_id())).parent.mkdir(parents=True)
        key = layout.manifest(snapshot_id("s"))
        manifest = folder(made) / key
        newer = records.encode(
            records.msgspec.structs.replace(records.decode_manifest(manifest.read_bytes(), "m"), format=2)  # type: ignore[attr-defined]
        )
        error = damaged(made, manifest, newer)
        assert isinstance(error, Unsupported) and key in error.message and "format 2" in error.message
        error = damaged(made, manifest, manifest.read_bytes()[:-200])
        assert isinstance(error, DataCorrupt) and key in error.message
        (index,) = [path for path in objects(made) if "regions" in path.parts]
        for altered in (index.read_bytes()[:-1] + b"x", index.read_bytes()[:100], b""):
            error = damaged(made, index, altered)
            assert isinstance(error, DataCorrupt) and index.name in error.message
        assert gc(made)["removed"] == 0


def test_a_lifecycle_rule_that_ate_objects_is_named_and_removes_nothing() -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        snapshot(made, "s")
        fill(device, SIZE)
        snapshot(made, "gone")
        made.call("snapshot.delete", snapshot="gone")
        age(made, 2)
        records_of = sorted((folder(made) / "snapshots").rglob("*.json"))
        for eaten in sorted(objects(made)):
            eaten.unlink()
        with pytest.raises(DataCorrupt, match=r"not in the store's listing .*: lineages/.*nothing was removed"):
            gc(made)
        assert sorted((folder(made) / "snapshots").rglob("*.json")) == records_of
        (folder(made) / layout.REPOSITORY).unlink()
        with pytest.raises(DataCorrupt, match=r"no stillframe.json; nothing was removed"):
            gc(made)


def test_a_store_whose_clock_went_back_is_named_and_removes_nothing() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "s")
        made.call("snapshot.delete", snapshot="s")
        age(made, 3)
        one = min(objects(made))
        before = objects(made)
        os.utime(one, (time.time() + 7200, time.time() + 7200))
        with pytest.raises(FailedPrecondition, match=f"{one.name} is 2.0 hours newer than the store's present time"):
            gc(made)
        assert objects(made) == before
        os.utime(one, (time.time() - 3 * DAY,) * 2)
        assert gc(made)["removed"] > 0
        assert objects(made) == set()


def test_a_second_collection_gives_way_and_one_that_died_is_forgotten() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "s")
        other = folder(made) / layout.collection(new_id())
        other.parent.mkdir()
        other.write_bytes(b"somebody's")
        with pytest.raises(FailedPrecondition, match=f"another garbage collection.*{other.name}"):
            gc(made)
        assert gc(made, dry_run=True)["removed"] == 0
        os.utime(other, (time.time() - 3700,) * 2)
        gc(made)
        assert not list(other.parent.parent.glob("collections/*"))


def test_a_folder_is_tidied() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "s")
        packs = next(iter(objects(made))).parent.parent / "packs"
        half = packs / ".new-half-written"
        half.write_bytes(b"half")
        assert gc(made)["half_written"] == 0
        made.call("snapshot.delete", snapshot="s")
        age(made, 3)
        assert gc(made)["half_written"] == 1
        age(made, 3)
        gc(made)
        assert not half.exists() and not packs.parent.exists()
        snapshot(made, "again")


def test_figures_by_lineage() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        snapshot(made, "one")
        found = job(made, "repository.stats")
        (lineage,) = found["lineages"].values()
        assert found["bytes"] == lineage["bytes"] == sum(path.stat().st_size for path in objects(made))
        assert (lineage["packs"], lineage["regions"], found["snapshots"]) == (2, 1, {"committed": 1})
        assert (lineage["volumes"], lineage["snapshots"]) == (["v"], 1)
        assert "\t1\t2\t1\t" in stillframe(made, "repository", "stats")


def test_an_unused_repository_is_nothing_wrong() -> None:
    with engine() as made:
        assert gc(made)["removed"] == 0
        assert job(made, "repository.check")["hurt"] == []
        assert "0 objects removed" in stillframe(made, "repository", "gc")
        assert [path.name for path in folder(made).rglob("*")] == ["probe"]


@pytest.mark.parametrize("kind", ["versitygw", "rclone_s3"])
def test_s3_with_and_without_conditional_puts(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(kind)
    with engine() as made:
        bucket = server.make_bucket()
        credentials = str(credentials_file(made.state.parent))
        url = f"s3://{bucket}/p"
        made.repository("s3", url, endpoint=server.endpoint, region="us-east-1", credentials=credentials)
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        content = read_device(device, SIZE)
        for name in ("kept", "gone"):
            made.call("snapshot.create", volume="v", name=name, repository="s3")
            assert made.wait_snapshot(name, repository="s3")["state"] == "committed"
            fill(device, SIZE)
        made.call("snapshot.delete", snapshot="gone", repository="s3")
        assert job(made, "repository.check", repository="s3")["hurt"] == []
        if kind == "rclone_s3":
            with pytest.raises(Unsupported, match="conditional PUT"):
                gc(made, repository="s3")
            return
        assert gc(made, repository="s3")["removed"] == 0
        store = open_store(Repository("s3", url, endpoint=server.endpoint, credentials=credentials), Policy(0.0))
        before = len(server.keys(bucket))
        time.sleep(4)  # a margin of two seconds in place of a day: this server stamps whole seconds, perhaps rounded up
        done = collect.collect(store, conditions=True, dry_run=False, ways=collect.Ways(node="test", margin=2.0))
        assert done["freed_bytes"] > SIZE // 2
        assert len(server.keys(bucket)) == before - done["removed"]
        made.restore("kept", "r", repository="s3")
        assert read_device(str(made.call("volume.show", name="r")["device"]), SIZE) == content


def test_pruning() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE), SIZE)
        fill(made.volume("other", SIZE), SIZE)
        snapshot(made, "of-other", "other")
        for number in range(4):
            snapshot(made, f"s{number}")
        told = stillframe(made, "snapshot", "prune", "v", "--keep-last", "1", "--keep-hourly", "1", "--dry-run")
        assert told.count("would be deleted") == 3 and "kept (last, hourly)" in told
        assert len(made.call("snapshot.list")["snapshots"]) == 5
        assert stillframe(made, "snapshot", "prune", "v", "--keep-last", "2").count("\tdeleted") == 2
        left = {item["name"] for item in made.call("snapshot.list")["snapshots"]}
        assert left == {"s2", "s3", "of-other"}
        assert "at least one of the --keep" in stillframe(made, "snapshot", "prune", "v", code=2)
        assert "no volume" in stillframe(made, "snapshot", "prune", "nobody", "--keep-last", "1", code=3)
