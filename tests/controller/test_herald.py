"""What claims and VolumeSnapshots are told by events, on a real API: progress, ends, lost nodes, other replicas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client

from driver.controller.cluster import State
from driver.controller.events import PROGRESS
from driver.controller.herald import Herald
from driver.controller.repositories import Repositories
from driver.rpc.names import parse_handle
from tests.apiserver import NAMESPACE
from tests.clusters import Cluster, Replica
from tests.controller.test_lost_nodes import begin_upload, remove_snapshot
from tests.controller.test_routing import create
from tests.waiting import wait_until


def herald(of: Cluster, replica: Replica) -> Herald:
    return Herald(replica.nodes, Repositories(of.folder / "state"), replica.kube, replica.lease)


def begun(of: Cluster, claim: str, snapshot: str, node: str = "node-a", namespace: str = NAMESPACE) -> str:
    """The handle of a snapshot of a claim, that is being uploaded."""
    made: Any = of.api.put_claim(claim, namespace)
    name = f"pvc-{made.metadata.uid}"
    volume = create(of.controllers[0], name, node)
    of.api.put_volume(name, volume, made)
    handle = begin_upload(of.controllers[0], of.nodes[node], volume, f"snapshot-{snapshot}")
    of.api.put_snapshot(snapshot, claim, handle, volume, namespace)
    return handle


def test_an_upload_is_told_from_its_beginning_to_its_end(one: Cluster) -> None:
    teller, idle = herald(one, one.replica("one")), herald(one, one.replica("other"))
    handle = begun(one, "data-1", "monday")
    idle.turn()
    assert one.api.events("VolumeSnapshot", "monday") == {}, "the lease is another's"
    teller.turn()
    first = one.api.events("VolumeSnapshot", "monday")["SnapshotUploading"]
    assert first.message.startswith("uploading: ") and first.message.endswith(" left") and first.type == "Normal"
    told = one.api.events("PersistentVolumeClaim", "data-1")["SnapshotUploading"]
    assert told.message == f"snapshot monday {first.message}"

    def goes_on() -> Any:
        teller.turn()
        later = one.api.events("VolumeSnapshot", "monday")["SnapshotUploading"]
        return later if later.message != first.message else None

    later = wait_until(goes_on)
    assert later.metadata.uid == first.metadata.uid, "it is the same event, written anew"
    figures = json.loads(later.metadata.annotations[PROGRESS])
    assert figures["stage"] == "running" and 0 < figures["done_bytes"] <= figures["total_bytes"] == 64 << 20

    def is_done() -> bool:
        teller.turn()
        return {"SnapshotUploading", "SnapshotUploaded"} == one.api.events("VolumeSnapshot", "monday").keys()

    wait_until(is_done)
    done = one.api.events("VolumeSnapshot", "monday")["SnapshotUploaded"]
    assert done.message.startswith("uploaded: 64.0 MiB in ")
    assert "SnapshotUploaded" in one.api.events("PersistentVolumeClaim", "data-1")
    version = done.metadata.resource_version
    teller.turn()
    assert one.api.events("VolumeSnapshot", "monday")["SnapshotUploaded"].metadata.resource_version == version
    remove_snapshot(one.controllers[0], handle)


def test_a_namespace_that_takes_no_events_keeps_nobody_else_from_theirs(one: Cluster) -> None:
    """Nothing can be written into a namespace that is being deleted."""
    one.api.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="doomed")))
    teller = herald(one, one.replica("one"))
    lost = begun(one, "data-5", "friday", namespace="doomed")
    kept = begun(one, "data-6", "saturday")
    one.api.core.delete_namespace("doomed")
    teller.turn()
    assert "SnapshotUploading" in one.api.events("VolumeSnapshot", "saturday")
    assert "SnapshotUploading" in one.api.events("PersistentVolumeClaim", "data-6")
    left: Any = one.api.core.list_namespaced_event("doomed")
    assert left.items == []
    for handle in (lost, kept):
        remove_snapshot(one.controllers[0], handle)


def test_events_that_went_away_and_replicas_that_changed_are_no_hindrance(one: Cluster) -> None:
    first, again = (herald(one, one.replica("one")) for _ in range(2))
    handle = begun(one, "data-2", "tuesday")
    first.turn()
    kept = one.api.events("VolumeSnapshot", "tuesday")["SnapshotUploading"]
    # the process was started anew, and knows nothing
    again.turn()
    assert one.api.events("VolumeSnapshot", "tuesday")["SnapshotUploading"].metadata.uid == kept.metadata.uid
    one.api.core.delete_collection_namespaced_event(NAMESPACE)

    def is_back() -> bool:
        again.turn()
        return "SnapshotUploading" in one.api.events("VolumeSnapshot", "tuesday")

    wait_until(is_back)
    remove_snapshot(one.controllers[0], handle)
    again.turn()
    assert "SnapshotFailed" not in one.api.events("VolumeSnapshot", "tuesday"), "who deletes it need not be told"


def test_a_session_that_failed_is_told_with_the_reason_and_what_to_do(one: Cluster) -> None:
    """The engine is killed: what was uploading has lost its memory."""
    teller = herald(one, one.replica("one"))
    begun(one, "data-3", "wednesday")
    teller.turn()
    node = one.nodes["node-a"]
    node.engine.kill()
    node.engine.clean_devices()
    node.engine.start()

    def is_told() -> bool:
        teller.turn()
        return "SnapshotFailed" in one.api.events("VolumeSnapshot", "wednesday")

    wait_until(is_told)
    told = one.api.events("VolumeSnapshot", "wednesday")["SnapshotFailed"]
    assert told.type == "Warning"
    assert "the engine was stopped, or lost its power" in told.message
    assert "what to do: " in told.message and "take another one" in told.message
    told = one.api.events("PersistentVolumeClaim", "data-3")["SnapshotFailed"]
    assert told.message.startswith("snapshot wednesday failed: ")


def test_the_end_of_one_whose_node_is_gone_is_read_in_its_repository(one: Cluster) -> None:
    node = one.node("node-b", "--upload-rate", str(1 << 20))  # it is not done before it dies, however long that takes
    handle = begun(one, "data-4", "thursday", node.name)
    replica = one.replica("one")
    teller = herald(one, replica)
    teller.turn()
    node.kill()
    one.api.put_node(node.name, ready=False)
    wait_until(lambda: replica.nodes.cluster.find(node.name).state is State.NOT_READY)
    teller.turn()
    assert "SnapshotFailed" not in one.api.events("VolumeSnapshot", "thursday"), "it may still go on"
    parsed = parse_handle("snapshot", handle)
    node.engine.kill()
    with pytest.raises(Exception, match="nothing more was heard"):
        Repositories(one.folder / "state").fence(parsed.where, parsed.id, "nothing more was heard of it")

    def is_told() -> bool:
        teller.turn()
        return "SnapshotFailed" in one.api.events("VolumeSnapshot", "thursday")

    wait_until(is_told)
    assert "nothing more was heard of it" in one.api.events("VolumeSnapshot", "thursday")["SnapshotFailed"].message
