"""What the controller decides without asking anybody: nodes of a topology, of pods and Node objects, of a group."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from kubernetes import client

from csi import csi_pb2
from driver.controller.cluster import DELETED, Cluster, State
from driver.controller.everywhere import Everywhere
from driver.controller.groups import check_one_node
from driver.controller.nodes import Nodes, unavailable
from driver.controller.patience import SECONDS, Patience
from driver.controller.volumes import VolumeCalls, wanted_nodes
from driver.core.errors import InvalidArgument, NodeUnavailable, OutOfSpace
from driver.rpc.names import TOPOLOGY_KEY, Handle, node_id
from tests.plugins import mount_capability

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def node(name: str, ready: str = "True") -> Any:
    condition = client.V1NodeCondition(type="Ready", status=ready)
    return client.V1Node(
        metadata=client.V1ObjectMeta(name=name), status=client.V1NodeStatus(conditions=[condition])
    )


def pod(
    name: str, of: str | None, address: str | None, phase: str = "Running", age: int = 0, *, ending: bool = False
) -> Any:
    made = client.V1ObjectMeta(name=name, creation_timestamp=NOW - timedelta(seconds=age))
    made.deletion_timestamp = NOW if ending else None
    spec = client.V1PodSpec(node_name=of, containers=[client.V1Container(name="node")])
    return client.V1Pod(metadata=made, spec=spec, status=client.V1PodStatus(phase=phase, pod_ip=address))


def view(nodes: list[Any], pods: list[Any]) -> Cluster:
    unused: Any = None
    made = Cluster(unused, "a=b")
    made._on_nodes(nodes)
    made._on_pods(pods)
    return made


def test_the_preferred_topology_comes_first() -> None:
    def at(*names: str) -> list[csi_pb2.Topology]:
        return [csi_pb2.Topology(segments={TOPOLOGY_KEY: name}) for name in names]

    requirement = csi_pb2.TopologyRequirement(requisite=at("a", "b", "c"), preferred=at("c", "a"))
    assert wanted_nodes(requirement) == ["c", "a", "b"]
    assert wanted_nodes(csi_pb2.TopologyRequirement()) == []
    assert wanted_nodes(csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={"zone": "z"})])) == []


@pytest.mark.parametrize("condition", ["False", "Unknown"])
def test_only_a_ready_node_with_a_running_plugin_is_asked(condition: str) -> None:
    cluster = view([node("a"), node("b", condition), node("c")], [pod("p-a", "a", "10.0.0.1"), pod("p-b", "b", "10.0.0.2")])
    assert (cluster.find("a").state, cluster.find("a").address) == (State.READY, "10.0.0.1")
    assert (cluster.find("b").state, cluster.find("b").address) == (State.NOT_READY, None)
    assert cluster.find("c").state is State.NO_PLUGIN
    assert cluster.find("d").state is State.ABSENT
    assert cluster.with_plugins() == ["a", "b"]


def test_pods_that_are_not_running_do_not_count() -> None:
    ending, failed = pod("old", "a", "10.0.0.1", ending=True), pod("failed", "b", "10.0.0.2", "Failed")
    pods = [ending, failed, pod("waits", "c", None, "Pending"), pod("homeless", None, None, "Pending")]
    cluster = view([node(name) for name in "abc"], pods)
    assert [cluster.find(name).state for name in "abc"] == [State.NO_PLUGIN] * 3
    cluster._on_pod("ADDED", pod("new", "a", "10.0.0.9"))
    assert cluster.find("a").address == "10.0.0.9"
    cluster._on_pod("ADDED", pod("newer", "a", "10.0.0.10", age=-5))
    assert cluster.find("a").address == "10.0.0.10"
    cluster._on_pod(DELETED, pod("newer", "a", "10.0.0.10"))
    assert cluster.find("a").address == "10.0.0.9"


def test_a_node_of_a_long_name_is_known_by_its_hash_and_named_in_full() -> None:
    name = "node-" + "x" * 80
    cluster = view([node(name)], [])
    place = cluster.find(node_id(name))
    assert place.state is State.NO_PLUGIN
    assert name in unavailable(place).message
    cluster._on_node("MODIFIED", node(name, "Unknown"))
    assert name in unavailable(cluster.find(node_id(name))).hint
    cluster._on_node(DELETED, node(name))
    assert cluster.find(node_id(name)).state is State.ABSENT


def test_a_group_is_of_one_node() -> None:
    check_one_node([Handle("a", "1"), Handle("a", "2")])
    with pytest.raises(InvalidArgument, match="'a', 'b'"):
        check_one_node([Handle("a", "1"), Handle("b", "2")])
    with pytest.raises(InvalidArgument):
        check_one_node([])


class Call:
    """A call with time enough."""

    def time_remaining(self) -> float:
        return 60.0

    def is_active(self) -> bool:
        return True


@pytest.mark.parametrize("pods", [[], [pod("p-a", "a", "10.0.0.1")]])
def test_a_ready_node_without_its_plugin_is_waited_for_and_given_up_after_a_minute(pods: list[Any]) -> None:
    """It has none, or one that cannot be called."""
    now, unused, context = [0.0], cast(Any, None), cast(Any, Call())
    nodes = Nodes(view([node("a")], pods), lambda: None, 9810)
    calls = VolumeCalls(Everywhere(nodes, unused, unused), Patience(lambda: now[0]))
    there = csi_pb2.Topology(segments={TOPOLOGY_KEY: "a"})
    capacity = csi_pb2.GetCapacityRequest(accessible_topology=there)
    create = csi_pb2.CreateVolumeRequest(
        name="pvc-1", volume_capabilities=[mount_capability()],
        accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[there], preferred=[there]),
    )  # fmt: skip
    for wait in (0.0, SECONDS / 2):
        now[0] += wait
        with pytest.raises(NodeUnavailable):
            calls.CreateVolume(create, context)
        with pytest.raises(NodeUnavailable):
            calls.GetCapacity(capacity, context)
    now[0] += SECONDS
    with pytest.raises(OutOfSpace):
        calls.CreateVolume(create, context)
    assert calls.GetCapacity(capacity, context) == csi_pb2.GetCapacityResponse()


def test_a_claim_waits_a_minute_for_a_plugin_each_time_and_not_for_another_claim_s() -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    assert not patience.is_over("pvc-1")
    now[0] += SECONDS
    assert patience.is_over("pvc-1") and not patience.is_over("pvc-2")
    patience.end("pvc-1")
    assert not patience.is_over("pvc-1")
