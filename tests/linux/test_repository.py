"""Garbage collection, check and figures of a repository, with a real engine; the store's clock is moved, not waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driver.core.errors import AlreadyExists, DataCorrupt, FailedPrecondition, Unsupported
from driver.core.sizes import MIB
from tests.engines import Engine, engine, run
from tests.oracle import read_device
from tests.servers import S3Server, credentials_file, rclone_s3, versitygw

__all__ = ["rclone_s3", "versitygw"]

SIZE = 32 * MIB
DAY = 24 * 3600


def fill(device: str) -> None:
    run("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=32", "oflag=direct", "status=none")


def objects(made: Engine) -> list[Path]:
    return [path for path in (made.state.parent / "repository/lineages").rglob("*") if path.is_file()]


def age(made: Engine, days: float) -> None:
    """Everything in the folder was written that much earlier."""
    for path in (made.state.parent / "repository").rglob("*"):
        if path.is_file():
            at = path.stat().st_mtime - days * DAY
            os.utime(path, (at, at))


def gc(made: Engine, **arguments: object) -> dict[str, object]:
    return made.wait_job(made.call("repository.gc", **arguments)["job"])


def snapshot(made: Engine, name: str) -> None:
    made.call("snapshot.create", volume="v", name=name)
    assert made.wait_snapshot(name)["state"] == "committed"


def test_what_a_deleted_snapshot_left_goes_after_a_day_and_nothing_else() -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        fill(device)
        snapshot(made, "one")
        content = read_device(device, SIZE)
        packs = set(objects(made))
        fill(device)
        snapshot(made, "two")
        made.call("snapshot.delete", snapshot="two")
        assert gc(made)["removed"] == 0, "a deleted snapshot is kept for a day"
        age(made, 2)
        told = gc(made, dry_run=True)
        assert int(str(told["freed_bytes"])) > SIZE // 2
        assert set(objects(made)) > packs
        assert gc(made)["freed_bytes"] == told["freed_bytes"]
        assert set(objects(made)) == packs
        assert gc(made)["removed"] == 0
        assert read_device(made.restore("one", "r"), SIZE) == content
        snapshot(made, "two")  # its name is free again


def test_the_name_of_a_deleted_snapshot_is_taken_until_then() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE))
        snapshot(made, "one")
        made.call("snapshot.delete", snapshot="one")
        with pytest.raises((AlreadyExists, FailedPrecondition)):
            made.call("snapshot.create", volume="v", name="one")
            raise FailedPrecondition(made.wait_snapshot("one")["state"])


def test_a_running_session_loses_nothing() -> None:
    with engine("--upload-rate", "8Mi") as made:
        device = made.volume("v", SIZE)
        fill(device)
        content = read_device(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        while not objects(made):
            pass
        assert gc(made)["removed"] == 0
        assert made.wait_snapshot("s")["state"] == "committed"
        assert read_device(made.restore("s", "r"), SIZE) == content


def test_a_check_names_what_is_missing_or_cut_short_and_whom_that_hurts() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE))
        snapshot(made, "whole")
        before = set(objects(made))
        snapshot(made, "hurt")
        found = made.wait_job(made.call("repository.check")["job"])
        assert (found["hurt"], found["orphans"], found["objects"]) == ({}, 0, len(objects(made)))
        new = sorted(set(objects(made)) - before)
        missing, short = [path for path in new if "packs" in path.parts][:2]
        missing.unlink()
        os.truncate(short, 100)
        found = made.wait_job(made.call("repository.check")["job"])
        assert list(found["hurt"]) == ["hurt"]
        told = "\n".join(found["hurt"]["hurt"])
        assert f"{missing.name} is missing" in told
        assert f"{short.name} has 100 bytes" in told
        age(made, 2)
        with pytest.raises(DataCorrupt, match="nothing was removed"):
            gc(made)


def test_figures_by_lineage() -> None:
    with engine() as made:
        fill(made.volume("v", SIZE))
        snapshot(made, "one")
        found = made.wait_job(made.call("repository.stats")["job"])
        (lineage,) = found["lineages"].values()
        assert found["bytes"] == lineage["bytes"] == sum(path.stat().st_size for path in objects(made))
        assert (lineage["packs"], lineage["regions"], found["snapshots"]) == (2, 1, {"committed": 1})


@pytest.mark.parametrize("kind", ["versitygw", "rclone_s3"])
def test_s3_with_and_without_conditional_puts(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(kind)
    with engine() as made:
        url = f"s3://{server.make_bucket()}/p"
        made.repository("s3", url, endpoint=server.endpoint, region="us-east-1",
                        credentials=str(credentials_file(made.state.parent)))  # fmt: skip
        fill(made.volume("v", SIZE))
        made.call("snapshot.create", volume="v", name="s", repository="s3")
        assert made.wait_snapshot("s", repository="s3")["state"] == "committed"
        assert made.wait_job(made.call("repository.check", repository="s3")["job"])["hurt"] == {}
        if kind == "rclone_s3":
            with pytest.raises(Unsupported, match="conditional PUT"):
                gc(made, repository="s3")
        else:
            assert gc(made, repository="s3")["removed"] == 0
