"""Nodes that are NotReady, silent, dead or gone: what each call answers, and what can still be deleted."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.ids import new_id, snapshot_id
from tests.clusters import Cluster, Controller, NodePlugin, cluster
from tests.controller.test_routing import SIZE, create, delete, topology, volume_of
from tests.engines import run
from tests.oracle import fill
from tests.waiting import wait_until

DEADLINE = 60.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """A controller, and a node that is always there."""
    with cluster() as made:
        made.controller()
        made.node("node-there")
        yield made


@pytest.fixture
def node(shared: Cluster) -> Iterator[NodePlugin]:
    """A node of the test's own, to be lost."""
    made = shared.node(f"node-{new_id()[:8]}", "--upload-rate", str(2 << 20))
    yield made
    shared.remove(made.name)


def refusal(call: Callable[..., Any], request: Any, named: str) -> grpc.StatusCode:
    """The code, of an answer within the deadline that names a node, or what it is about, and says what to do."""
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=DEADLINE)
    text = str(raised.value.details())
    assert named in text, text
    assert ";" in text, text
    assert raised.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return raised.value.code()


def snapshot_request(volume: str, name: str) -> csi_pb2.CreateSnapshotRequest:
    return csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name=name)


def snapshot(controller: Controller, volume: str, name: str) -> str:
    """The handle of a complete snapshot."""

    def made() -> str | None:
        found = controller.controller.CreateSnapshot(snapshot_request(volume, name), timeout=DEADLINE).snapshot
        return str(found.snapshot_id) if found.ready_to_use else None

    return str(wait_until(made))


def begin_upload(controller: Controller, node: NodePlugin, volume: str, name: str) -> str:
    """The handle of a snapshot that is being uploaded, and will be for long."""
    held = node.volumes()
    called = next(key for key, handle in held.items() if handle == volume)
    fill(node.engine.call("volume.attach", name=called)["device"], SIZE)
    found = controller.controller.CreateSnapshot(snapshot_request(volume, name), timeout=DEADLINE).snapshot
    assert not found.ready_to_use
    return str(found.snapshot_id)


def remove_snapshot(controller: Controller, handle: str) -> None:
    controller.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=handle), timeout=DEADLINE)


def check_codes(
    controller: Controller, node: str, volume: str, complete: str, *, with_pod: bool = True, may_pass: bool = False
) -> None:
    """What the calls for a node that cannot be asked answer. `may_pass`: only its plugin is away."""
    calls = controller.controller
    code = grpc.StatusCode.UNAVAILABLE if may_pass else grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal(calls.CreateVolume, volume_of(f"pvc-{new_id()}", node), node) is code
    assert refusal(calls.CreateSnapshot, snapshot_request(volume, "lost"), node) is grpc.StatusCode.FAILED_PRECONDITION
    where = topology(node).requisite[0]
    rest: list[tuple[Any, Any]] = [
        (calls.DeleteVolume, csi_pb2.DeleteVolumeRequest(volume_id=volume)),
        (calls.ControllerGetVolume, csi_pb2.ControllerGetVolumeRequest(volume_id=volume)),
        (calls.ControllerExpandVolume, csi_pb2.ControllerExpandVolumeRequest(volume_id=volume)),
        (calls.GetCapacity, csi_pb2.GetCapacityRequest(accessible_topology=where)),
    ]
    if with_pod:
        rest.append((calls.ListVolumes, csi_pb2.ListVolumesRequest()))
    for call, request in rest:
        assert refusal(call, request, node) is grpc.StatusCode.UNAVAILABLE, type(request).__name__
    assert calls.CreateSnapshot(snapshot_request(volume, "whole"), timeout=DEADLINE).snapshot.ready_to_use
    assert snapshots_of(controller, volume) == [complete]
    found = calls.GetSnapshot(csi_pb2.GetSnapshotRequest(snapshot_id=complete), timeout=DEADLINE).snapshot
    assert found.ready_to_use and found.source_volume_id == volume


def snapshots_of(controller: Controller, volume: str) -> list[str]:
    """The handles of a volume's snapshots, as they are listed."""
    ask = csi_pb2.ListSnapshotsRequest(source_volume_id=volume)
    return [entry.snapshot.snapshot_id for entry in controller.controller.ListSnapshots(ask, timeout=DEADLINE).entries]


def can_list(controller: Controller) -> bool:
    try:
        controller.controller.ListVolumes(csi_pb2.ListVolumesRequest(), timeout=DEADLINE)
    except grpc.RpcError:
        return False
    return True


def test_what_calls_answer_while_a_node_cannot_be_asked(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    other = create(controller, "pvc-b", "node-there")
    complete = snapshot(controller, volume, "whole")

    shared.api.put_node(node.name, ready=False)
    wait_until(lambda: not controller.can_ask(node.name))
    check_codes(controller, node.name, volume, complete)
    shared.api.put_node(node.name)
    wait_until(lambda: controller.can_ask(node.name))

    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    check_codes(controller, node.name, volume, complete, may_pass=True)
    node.process.send_signal(signal.SIGCONT)
    wait_until(lambda: controller.can_ask(node.name))

    node.kill()
    check_codes(controller, node.name, volume, complete, may_pass=True)
    shared.api.delete_pod(f"plugin-{node.name}")  # its volumes are listed no more, and are refused as before
    wait_until(lambda: can_list(controller))
    check_codes(controller, node.name, volume, complete, with_pod=False, may_pass=True)
    shared.api.core.delete_node(node.name)
    wait_until(lambda: "no Node object" in gone_text(controller, csi_pb2.DeleteVolumeRequest(volume_id=volume)))
    check_codes(controller, node.name, volume, complete, with_pod=False)
    remove_snapshot(controller, complete)
    assert snapshots_of(controller, volume) == []
    get = csi_pb2.ControllerGetVolumeRequest(volume_id=other)
    assert controller.controller.ControllerGetVolume(get, timeout=DEADLINE).volume.volume_id == other


def test_a_volume_for_any_node_is_made_though_several_cannot_be_reached(shared: Cluster, node: NodePlugin) -> None:
    """They are asked all at once: within the caller's deadline one that answers is found."""
    for number in range(1, 6):
        shared.api.put_node(f"node-lost-{number}")
        shared.api.put_pod(f"plugin-lost-{number}", f"node-lost-{number}", f"127.0.8.{number}")
    controller = shared.controllers[0]
    wait_until(lambda: 'stillframe_nodes{state="ready"} 7.0' in controller.get("/metrics"))
    made = controller.controller.CreateVolume(volume_of("anywhere"), timeout=10).volume  # the provisioner's own default
    assert made.volume_id in {handle for each in shared.nodes.values() for handle in each.volumes().values()}
    delete(controller, made.volume_id)
    for number in range(1, 6):
        shared.api.delete_pod(f"plugin-lost-{number}")
        shared.api.core.delete_node(f"node-lost-{number}")
    wait_until(lambda: 'stillframe_nodes{state="ready"} 2.0' in controller.get("/metrics"))


def test_a_snapshot_whose_node_died_fails_after_five_silent_minutes(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    begin_upload(controller, node, volume, "dying")
    node.kill()
    node.engine.kill()
    ask = snapshot_request(volume, "dying")
    assert refusal(controller.controller.CreateSnapshot, ask, node.name) is grpc.StatusCode.FAILED_PRECONDITION
    shared.age(snapshot_id("dying"))
    for _ in range(2):
        assert refusal(controller.controller.CreateSnapshot, ask, node.name) is grpc.StatusCode.INTERNAL
    manifest = shared.folder / "repository/snapshots" / snapshot_id("dying") / "manifest.json"
    assert '"aborted"' in manifest.read_text()


def test_a_commit_that_was_faster_than_the_mark_counts(shared: Cluster, node: NodePlugin) -> None:
    """The heartbeat stood still, the node cannot be asked, and the manifest is there: the snapshot is complete."""
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    handle = snapshot(controller, volume, "late")
    node.kill()
    shared.age(snapshot_id("late"))
    assert controller.controller.CreateSnapshot(snapshot_request(volume, "late"), timeout=DEADLINE).snapshot.ready_to_use
    assert handle == f"local:{snapshot_id('late')}"


def test_a_session_cannot_commit_after_its_deletion_without_its_node(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    handle = begin_upload(controller, node, volume, "deleted")
    shared.api.put_node(node.name, ready=False)
    node.kill()
    for _ in range(2):
        remove_snapshot(controller, handle)
    ended = node.engine.wait_snapshot(handle)
    assert ended["state"] != "committed"
    folder = shared.folder / "repository/snapshots" / snapshot_id("deleted")
    assert (folder / "deleted.json").exists() and '"aborted"' in (folder / "manifest.json").read_text()


def test_deleting_a_running_snapshot_ends_its_session(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    handle = begin_upload(controller, node, volume, "unwanted")
    remove_snapshot(controller, handle)
    shown = node.engine.call("snapshot.list", repository="local")["snapshots"]
    assert [item for item in shown if item["id"] == snapshot_id("unwanted")] == []
    run("blkdiscard", "-f", node.engine.call("volume.show", name="pvc-a")["device"])
    snapshot(controller, volume, "wanted")


def test_a_forgotten_node_takes_its_volumes_with_it(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    forget = ("node", "forget", node.name, "--namespace", "stillframe")
    refused = shared.command(*forget)
    assert refused.returncode == 5 and f"kubectl delete node {node.name}" in refused.stderr
    node.kill()
    shared.api.core.delete_node(node.name)
    request = csi_pb2.DeleteVolumeRequest(volume_id=volume)
    wait_until(lambda: "forget" in gone_text(controller, request))
    assert shared.command(*forget).returncode == 0
    delete(controller, volume)
    get = csi_pb2.ControllerGetVolumeRequest(volume_id=volume)
    with pytest.raises(grpc.RpcError) as raised:
        controller.controller.ControllerGetVolume(get, timeout=DEADLINE)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    shared.api.put_node(node.name)
    wait_until(lambda: "cannot be reached" in gone_text(controller, request))


def gone_text(controller: Controller, request: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        controller.controller.DeleteVolume(request, timeout=DEADLINE)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(raised.value.details())


def test_an_upload_of_a_group_is_given_up_and_deleted_without_its_node(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volumes = [create(controller, name, node.name) for name in ("pvc-1", "pvc-2")]
    for name in ("pvc-1", "pvc-2"):
        fill(node.engine.call("volume.attach", name=name)["device"], SIZE)
    ask = csi_pb2.CreateVolumeGroupSnapshotRequest(name="both", source_volume_ids=volumes)
    group = controller.groups.CreateVolumeGroupSnapshot(ask, timeout=DEADLINE).group_snapshot
    node.kill()
    node.engine.kill()
    ready = [item.ready_to_use for item in group.snapshots]
    assert not all(ready)
    assert refusal(controller.groups.CreateVolumeGroupSnapshot, ask, node.name) is grpc.StatusCode.FAILED_PRECONDITION
    for item in group.snapshots:
        shared.age(item.snapshot_id.rpartition(":")[2])
    assert refusal(controller.groups.CreateVolumeGroupSnapshot, ask, node.name) is grpc.StatusCode.INTERNAL
    gone = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id)
    controller.groups.DeleteVolumeGroupSnapshot(gone, timeout=DEADLINE)
    for item in group.snapshots:
        folder = shared.folder / "repository/snapshots" / item.snapshot_id.rpartition(":")[2]
        assert (folder / "deleted.json").exists()
    assert [snapshots_of(controller, volume) for volume in volumes] == [[], []]


def test_a_repository_that_is_not_there_deletes_nothing(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    handle = snapshot(controller, volume, "kept")
    repository, table = shared.folder / "repository", shared.folder / "state/repositories.toml"
    known = table.read_text()
    repository.rename(shared.folder / "elsewhere")
    calls = controller.controller
    gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=handle)
    assert refusal(calls.DeleteSnapshot, gone, "repository") is grpc.StatusCode.FAILED_PRECONDITION
    listing = csi_pb2.ListSnapshotsRequest()
    assert refusal(calls.ListSnapshots, listing, "repository") is grpc.StatusCode.FAILED_PRECONDITION
    table.write_text("")
    assert refusal(calls.DeleteSnapshot, gone, "local") is grpc.StatusCode.FAILED_PRECONDITION
    (shared.folder / "elsewhere").rename(repository)
    table.write_text(known)
    assert calls.CreateSnapshot(snapshot_request(volume, "kept"), timeout=DEADLINE).snapshot.ready_to_use


def test_the_api_server_may_be_away_and_the_last_word_counts(shared: Cluster, node: NodePlugin) -> None:
    controller = shared.controllers[0]
    volume = create(controller, "pvc-a", node.name)
    shared.api.restart_server()
    get = csi_pb2.ControllerGetVolumeRequest(volume_id=volume)
    assert controller.controller.ControllerGetVolume(get, timeout=DEADLINE).volume.volume_id == volume
    shared.api.put_node(node.name, ready=False)

    def is_noticed() -> bool:
        try:
            controller.controller.ControllerGetVolume(get, timeout=DEADLINE)
        except grpc.RpcError as error:
            return bool(re.search("NotReady", str(error.details())))
        time.sleep(0.1)
        return False

    wait_until(is_noticed)
