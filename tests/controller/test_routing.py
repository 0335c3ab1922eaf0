"""A controller plugin between CSI's callers and two or three real node plugins, found by a real Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.ids import new_id
from driver.rpc.names import TOPOLOGY_KEY
from tests.clusters import Cluster, Controller, cluster
from tests.metrics import check_served
from tests.plugins import mount_capability
from tests.waiting import wait_until

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """Three nodes and a controller that the tests of this file share."""
    with cluster() as made:
        made.controller()
        for name in ("node-a", "node-b", "node-c"):
            made.node(name)
        yield made


@pytest.fixture
def controller(shared: Cluster) -> Controller:
    return shared.controllers[0]


def topology(*nodes: str) -> csi_pb2.TopologyRequirement:
    named = [csi_pb2.Topology(segments={TOPOLOGY_KEY: node}) for node in nodes]
    return csi_pb2.TopologyRequirement(requisite=named, preferred=named[:1])


def volume_of(name: str, *nodes: str, size: int = SIZE, source: str = "") -> csi_pb2.CreateVolumeRequest:
    made = csi_pb2.CreateVolumeRequest(
        name=name, capacity_range=csi_pb2.CapacityRange(required_bytes=size), volume_capabilities=[mount_capability()],
        parameters={"provisioning": "thin"},
    )  # fmt: skip
    if nodes:
        made.accessibility_requirements.CopyFrom(topology(*nodes))
    if source:
        made.volume_content_source.volume.volume_id = source
    return made


def insist(call: Any, request: Any) -> Any:
    """Call as the sidecars do, again and again, if the node is too slow for the controller."""

    def answer() -> Any:
        try:
            return call(request, timeout=60)
        except grpc.RpcError as error:
            if "nothing answers within" not in str(error.details()):
                raise
            return None

    return wait_until(answer)


def create(controller: Controller, name: str, *nodes: str, size: int = SIZE) -> str:
    return str(insist(controller.controller.CreateVolume, volume_of(name, *nodes, size=size)).volume.volume_id)


def delete(controller: Controller, handle: str) -> None:
    insist(controller.controller.DeleteVolume, csi_pb2.DeleteVolumeRequest(volume_id=handle))


def test_a_volume_lives_on_the_node_that_is_wanted(shared: Cluster, controller: Controller) -> None:
    handle = create(controller, "pvc-1", "node-b")
    assert shared.nodes["node-b"].volumes() == {"pvc-1": handle}
    assert create(controller, "pvc-1", "node-b") == handle
    found = controller.controller.ControllerGetVolume(csi_pb2.ControllerGetVolumeRequest(volume_id=handle), timeout=60)
    assert found.volume.accessible_topology[0].segments[TOPOLOGY_KEY] == "node-b"
    grown = controller.controller.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(
            volume_id=handle, capacity_range=csi_pb2.CapacityRange(required_bytes=2 * SIZE)
        ),
        timeout=60,
    )
    assert grown.capacity_bytes == 2 * SIZE
    delete(controller, handle)
    delete(controller, handle)
    assert shared.nodes["node-b"].volumes() == {}


def test_a_volume_without_a_topology_is_found_again_by_its_name(shared: Cluster, controller: Controller) -> None:
    handle = create(controller, "anywhere")
    assert create(controller, "anywhere") == handle
    assert sum(len(node.volumes()) for node in shared.nodes.values()) == 1
    delete(controller, handle)


def test_what_a_node_answers_goes_on_as_it_is(controller: Controller) -> None:
    handle = create(controller, "pvc-2", "node-a")
    with pytest.raises(grpc.RpcError) as raised:
        create(controller, "pvc-2", "node-a", size=4 * SIZE)
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
    request = volume_of("pvc-3", "node-a")
    request.parameters["colour"] = "red"
    with pytest.raises(grpc.RpcError) as raised:
        controller.controller.CreateVolume(request, timeout=60)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "provisioning" in str(raised.value.details())
    delete(controller, handle)


def test_what_is_served_to_prometheus_is_what_the_page_says(controller: Controller) -> None:
    served = check_served(controller.get("/metrics"))
    assert served >= {"stillframe_nodes", "stillframe_certificate_expiry_timestamp_seconds", "stillframe_csi_calls"}


def test_capacity_is_that_of_the_node_that_is_asked_for(controller: Controller) -> None:
    one = csi_pb2.GetCapacityRequest(accessible_topology=csi_pb2.Topology(segments={TOPOLOGY_KEY: "node-c"}))
    here = controller.controller.GetCapacity(one, timeout=60)
    everywhere = controller.controller.GetCapacity(csi_pb2.GetCapacityRequest(), timeout=60)
    assert 0 < here.available_capacity < everywhere.available_capacity
    assert here.maximum_volume_size.value > 0


def test_pages_go_over_nodes_and_outlive_the_controller(shared: Cluster, controller: Controller) -> None:
    handles = sorted(create(controller, f"page-{node}-{i}", node, size=MIB) for node in shared.nodes for i in range(3))
    for size in (1, 2, 3, 4, 8, 9):
        shown: list[str] = []
        token = ""
        while True:
            request = csi_pb2.ListVolumesRequest(max_entries=size, starting_token=token)
            page = controller.controller.ListVolumes(request, timeout=60)
            shown += [entry.volume.volume_id for entry in page.entries]
            assert len(page.entries) == size or not page.next_token
            assert len(shown) <= len(handles), "the pages do not end"
            token = page.next_token
            if not token:
                break
        assert shown == handles, size
    first = controller.controller.ListVolumes(csi_pb2.ListVolumesRequest(max_entries=3), timeout=60)
    delete(controller, first.entries[-1].volume.volume_id)
    again = shared.controller()
    rest = again.controller.ListVolumes(csi_pb2.ListVolumesRequest(starting_token=first.next_token), timeout=60)
    assert [entry.volume.volume_id for entry in rest.entries] == handles[3:]
    with pytest.raises(grpc.RpcError) as raised:
        again.controller.ListVolumes(csi_pb2.ListVolumesRequest(starting_token="page 2"), timeout=60)
    assert raised.value.code() is grpc.StatusCode.ABORTED
    for handle in handles:
        delete(again, handle)


def test_a_group_is_cut_on_one_node_and_refused_over_two(controller: Controller) -> None:
    one, two, other = (create(controller, name, node) for name, node in
                       (("g-1", "node-a"), ("g-2", "node-a"), ("g-3", "node-b")))  # fmt: skip
    ask = csi_pb2.CreateVolumeGroupSnapshotRequest(name="group-1", source_volume_ids=[one, other])
    with pytest.raises(grpc.RpcError) as raised:
        controller.groups.CreateVolumeGroupSnapshot(ask, timeout=60)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    ask = csi_pb2.CreateVolumeGroupSnapshotRequest(name="group-1", source_volume_ids=[one, two])

    def made() -> csi_pb2.VolumeGroupSnapshot | None:
        group = controller.groups.CreateVolumeGroupSnapshot(ask, timeout=60).group_snapshot
        return group if group.ready_to_use else None

    group = wait_until(made)
    assert {item.source_volume_id for item in group.snapshots} == {one, two}
    member = csi_pb2.DeleteSnapshotRequest(snapshot_id=group.snapshots[0].snapshot_id)
    with pytest.raises(grpc.RpcError) as raised:
        controller.controller.DeleteSnapshot(member, timeout=60)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    ids = [item.snapshot_id for item in group.snapshots]
    request = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    assert controller.groups.GetVolumeGroupSnapshot(request, timeout=60).group_snapshot.ready_to_use
    gone = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    for _ in range(2):
        controller.groups.DeleteVolumeGroupSnapshot(gone, timeout=60)
    for handle in ids:  # whose VolumeSnapshotContents were made by hand, and are deleted now
        controller.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=handle), timeout=60)
    assert not controller.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest(), timeout=60).entries
    for handle in (one, two, other):
        delete(controller, handle)


def test_a_clone_on_another_node_goes_through_the_repository(shared: Cluster, controller: Controller) -> None:
    source = create(controller, "origin", "node-a")
    node = shared.nodes["node-a"]
    device = node.engine.call("volume.attach", name="origin")["device"]
    with open(device, "r+b") as file:
        file.write(b"the origin's first bytes")
    request = volume_of("copy", "node-c", source=source)

    def made() -> csi_pb2.Volume | None:
        try:
            return controller.controller.CreateVolume(request, timeout=60).volume  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED, error
            return None

    copy = wait_until(made)
    assert copy.content_source.volume.volume_id == source
    assert controller.controller.CreateVolume(request, timeout=60).volume.volume_id == copy.volume_id
    device = shared.nodes["node-c"].engine.call("volume.attach", name="copy")["device"]
    with open(device, "rb") as copied:
        assert copied.read(24) == b"the origin's first bytes"
    assert not controller.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest(), timeout=60).entries
    delete(controller, copy.volume_id)
    delete(controller, source)


def test_unknown_handles_are_what_the_specification_says(controller: Controller) -> None:
    delete(controller, "no id of ours")
    controller.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id="no id of ours"), timeout=60)
    with pytest.raises(grpc.RpcError) as raised:
        delete(controller, f"node-z:{new_id()}")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "node-z" in str(raised.value.details())
    get = csi_pb2.ControllerGetVolumeRequest(volume_id=f"node-a:{new_id()}")
    with pytest.raises(grpc.RpcError) as raised:
        controller.controller.ControllerGetVolume(get, timeout=60)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_roles_that_are_documented_suffice(shared: Cluster, controller: Controller) -> None:
    """Everything here ran with them; what they lack would be in the log."""
    assert "403 Forbidden" not in controller.log.read_text()
    assert controller.identity.Probe(csi_pb2.ProbeRequest(), timeout=60).ready.value
    figures = controller.get("/metrics")
    assert "stillframe_csi_calls_total" in figures
    assert 'stillframe_nodes{state="ready"} 3.0' in figures
    assert "stillframe_certificate_expiry_timestamp_seconds 1" in figures
