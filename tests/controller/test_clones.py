"""Clones on another node than their source's, where the upload does not go well."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from driver.controller.clones import left_over, snapshot_name
from driver.core.ids import new_id, snapshot_id
from tests.clusters import Cluster, cluster
from tests.controller.test_lost_nodes import refusal, remove_snapshot
from tests.controller.test_routing import SIZE, create, volume_of
from tests.oracle import fill
from tests.waiting import wait_until

MIB = 1 << 20
UPLOADED = f"local:{snapshot_id(snapshot_name('copy', 0))}"


@pytest.fixture
def two() -> Iterator[Cluster]:
    """A source on node-a, which uploads slowly, and node-b."""
    with cluster() as made:
        made.controller()
        made.node("node-a", "--upload-rate", str(4 * MIB))
        made.node("node-b")
        yield made


def source(of: Cluster) -> str:
    """The handle of a volume on node-a, full of random bytes."""
    handle = create(of.controllers[0], "origin", "node-a")
    fill(of.nodes["node-a"].engine.call("volume.attach", name="origin")["device"], SIZE)
    return handle


def attempt(of: Cluster, origin: str) -> tuple[grpc.StatusCode, str]:
    """What one call answers, that asks for the clone on node-b."""
    try:
        made = of.controllers[0].controller.CreateVolume(volume_of("copy", "node-b", source=origin), timeout=60)
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, str(made.volume.volume_id)


def begin(of: Cluster, origin: str) -> None:
    code, text = attempt(of, origin)
    assert (code, "is being uploaded" in text) == (grpc.StatusCode.ABORTED, True), text


def succeed(of: Cluster, origin: str, *refusals: grpc.StatusCode) -> str:
    """The clone's handle; only what passes hinders it meanwhile, and these `refusals`."""

    def is_made() -> str | None:
        code, text = attempt(of, origin)
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED, *refusals), text
        return text if code is grpc.StatusCode.OK else None

    return str(wait_until(is_made))


def test_an_upload_that_failed_is_begun_anew(two: Cluster) -> None:
    """The source's engine is killed in the midst of it; it says so until the repository has the mark that it is over."""
    origin, engine = source(two), two.nodes["node-a"].engine
    begin(two, origin)
    engine.kill()
    engine.clean_devices()
    engine.start()

    succeed(two, origin, grpc.StatusCode.INTERNAL)


def test_an_upload_whose_end_the_repository_holds_is_begun_anew_by_another_name(two: Cluster) -> None:
    """And the clone is found again when it is asked for once more, though both snapshots are deleted."""
    origin = source(two)
    begin(two, origin)
    remove_snapshot(two.controllers[0], UPLOADED)
    made = succeed(two, origin)
    assert attempt(two, origin) == (grpc.StatusCode.OK, made)
    assert all((entry / "deleted.json").exists() for entry in (two.folder / "repository/snapshots").iterdir())


def test_a_source_whose_node_cannot_be_asked_is_no_reason_to_schedule_the_claim_again(two: Cluster) -> None:
    origin = source(two)
    two.nodes["node-a"].kill()
    request = volume_of("copy", "node-b", source=origin)
    assert refusal(two.controllers[0].controller.CreateVolume, request, "node-a") is grpc.StatusCode.FAILED_PRECONDITION


def test_what_a_clone_left_behind_is_known_by_its_name_and_its_age() -> None:
    now = datetime(2026, 1, 3, tzinfo=UTC)

    def found(name: str | None, state: str = "committed", age: timedelta = timedelta(days=2)) -> dict[str, Any]:
        return {"id": new_id(), "name": name, "state": state, "created": (now - age).isoformat() if name else None}

    name = snapshot_name("pvc-1", 0)
    left = [found(name), found(name, "aborted"), found(snapshot_name("pvc-1", 1))]
    kept = [
        found(name, age=timedelta(hours=1)), found(name, "uploading"), found(name, "deleted"), found("clone-of-mine"),
        found("snapshot-1"), found(None, "aborted"), found(None, "failed"),
    ]  # fmt: skip
    assert left_over([*left, *kept], now) == [item["id"] for item in left]
