"""What the controller asks of a repository on an S3 server: little, and not for longer than who asks it waits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.ids import new_id
from tests.clusters import Cluster, Controller, NodePlugin, cluster
from tests.controller.test_routing import create, volume_of
from tests.servers import S3Server, credentials_file, repository_tables
from tests.transfer.proxy import PASS, STALL, Proxy
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def proxy(versitygw: S3Server) -> Iterator[Proxy]:
    """The controller's way to the server."""
    made = Proxy(versitygw.port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def of_node(versitygw: S3Server) -> Iterator[Proxy]:
    """The node's way to the server."""
    made = Proxy(versitygw.port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(versitygw: S3Server, proxy: Proxy, of_node: Proxy) -> Iterator[Cluster]:
    with cluster() as made:
        keys = str(credentials_file(made.folder))
        fields = {"url": f"s3://{versitygw.make_bucket()}/prefix", "credentials": keys}
        repository_tables(made.folder / "state", remote={**fields, "endpoint": proxy.endpoint})
        made.controller("--gc-interval", "0")
        node = made.node("node-a")
        repository_tables(node.engine.state, remote={**fields, "endpoint": of_node.endpoint})
        yield made


def test_a_poll_of_a_group_that_is_ready_reads_no_manifest(shared: Cluster, proxy: Proxy) -> None:
    controller = shared.controllers[0]
    volumes = [create(controller, f"pvc-{number}", "node-a") for number in range(3)]
    alone = csi_pb2.CreateSnapshotRequest(source_volume_id=volumes[0], name="alone")
    wait_until(lambda: controller.controller.CreateSnapshot(alone, timeout=60).snapshot.ready_to_use, 60)
    ask = csi_pb2.CreateVolumeGroupSnapshotRequest(name="together", source_volume_ids=volumes)

    def made() -> csi_pb2.VolumeGroupSnapshot | None:
        group = controller.groups.CreateVolumeGroupSnapshot(ask, timeout=60).group_snapshot
        return group if group.ready_to_use else None

    group = wait_until(made)
    assert made() is not None, "it may have been the node that said so, but now the controller has read them"
    before = len(proxy.seen)
    assert made() is not None
    created = {path for _, path in proxy.seen[before:]}
    before = len(proxy.seen)
    ids = {item.snapshot_id for item in group.snapshots}
    look = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    found = controller.groups.GetVolumeGroupSnapshot(look, timeout=60).group_snapshot
    assert found.ready_to_use and {item.snapshot_id for item in found.snapshots} == ids
    looked = {path for _, path in proxy.seen[before:]}
    assert (len(created), len(looked)) == (len(volumes) + 2, 2), (created, looked)
    assert not [path for path in created | looked if "manifest.json" in path]


def told(log: Path, call: str) -> list[dict[str, Any]]:
    """The ends of calls of that name that had no time left for the repository."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if "within the time of the call" in line]
    return [line for line in lines if (line["event"], line.get("call")) == ("call", call)]


def readers() -> dict[tuple[str, str], Any]:
    """By service and name, calls that read a repository first, and what each is asked."""
    snapshot, group = f"remote:{new_id()}", f"remote:{new_id()}"
    return {
        ("controller", "ListSnapshots"): csi_pb2.ListSnapshotsRequest(),
        ("controller", "GetSnapshot"): csi_pb2.GetSnapshotRequest(snapshot_id=snapshot),
        ("controller", "DeleteSnapshot"): csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot),
        ("groups", "GetVolumeGroupSnapshot"): csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=group),
        ("groups", "DeleteVolumeGroupSnapshot"): csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group),
    }


def check_in_time(plugin: Controller | NodePlugin, asked: dict[tuple[str, str], Any], code: str) -> None:
    """That the calls end with that code as their time is up, and say whom they waited for. They have a second and a half,
    less than a request to a store may take."""
    for (service, name), request in asked.items():
        call = getattr(getattr(plugin, service), name)

        def ended(call: Any = call, name: str = name, request: Any = request) -> list[dict[str, Any]]:
            with contextlib.suppress(grpc.RpcError):
                call(request, timeout=1.5)
            return told(plugin.log, name)

        line = wait_until(ended, 60, plugin.log.read_text)[0]
        assert line["code"] == code, line
        assert "repository 'remote'" in line["error"]


def test_a_store_that_is_silent_keeps_no_call_of_the_controller_beyond_its_deadline(shared: Cluster, proxy: Proxy) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-silent", "node-a")
    proxy.decide = lambda method, path: STALL
    try:
        check_in_time(controller, readers(), "UNAVAILABLE")
        snapshot = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="never")
        group = csi_pb2.CreateVolumeGroupSnapshotRequest(source_volume_ids=[volume], name="never")
        makers = {("controller", "CreateSnapshot"): snapshot, ("groups", "CreateVolumeGroupSnapshot"): group}
        check_in_time(controller, makers, "FAILED_PRECONDITION")
    finally:
        proxy.decide = lambda method, path: PASS


def test_a_store_that_is_silent_keeps_no_call_of_a_node_beyond_its_deadline(shared: Cluster, of_node: Proxy) -> None:
    restored = volume_of("restored", "node-a")
    restored.volume_content_source.snapshot.snapshot_id = f"remote:{new_id()}"
    of_node.decide = lambda method, path: STALL
    try:
        check_in_time(shared.nodes["node-a"], {**readers(), ("controller", "CreateVolume"): restored}, "UNAVAILABLE")
    finally:
        of_node.decide = lambda method, path: PASS


def test_a_call_that_is_cancelled_waits_for_no_store(shared: Cluster, proxy: Proxy) -> None:
    controller = shared.controllers[0]
    before = len(told(controller.log, "ListSnapshots"))
    proxy.decide = lambda method, path: STALL
    try:

        def ended() -> bool:
            seen = len(proxy.seen)
            call = controller.controller.ListSnapshots.future(csi_pb2.ListSnapshotsRequest(), timeout=60)
            wait_until(lambda: len(proxy.seen) > seen)
            call.cancel()
            return len(told(controller.log, "ListSnapshots")) > before

        wait_until(ended, 60, controller.log.read_text)
    finally:
        proxy.decide = lambda method, path: PASS
