"""Pods whose volume lost its device, on a real API and a real node: which are told and deleted, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from driver.controller.kube import Kube
from driver.controller.revive import REASON, Revive
from driver.core.errors import KubernetesUnavailable
from tests.apiserver import CLUSTER_ROLE, NAMESPACE
from tests.clusters import Cluster, cluster
from tests.controller.test_routing import create
from tests.waiting import wait_until


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A node; the controller beside it has another lease, so that it helps nobody."""
    with cluster() as made:
        monkeypatch.setitem(os.environ, "KUBECONFIG", str(made.api.kubeconfig()))
        made.controller("--lease", "another")
        node = made.node("node-a")
        try:
            yield made
        finally:
            node.unmount_all()
            allow(made, CLUSTER_ROLE)


def reviver(of: Cluster) -> Revive:
    replica = of.replica("one")
    return Revive(replica.nodes, replica.kube, replica.lease, remake=True)


def allow(of: Cluster, rules: list[Any]) -> None:
    """Give the controller these rights in the cluster."""
    role = client.V1ClusterRole(metadata=client.V1ObjectMeta(name="controller"), rules=rules)
    of.api.rbac.replace_cluster_role("controller", role)


def may_not_delete() -> bool:
    """Whether the API server has noticed that the controller may delete no pods."""
    try:
        Kube(NAMESPACE).delete_pod(NAMESPACE, "nobody", "no-uid")
    except KubernetesUnavailable:
        return True
    return False


def volume_of(of: Cluster, claim: str) -> str:
    """The handle of a volume that a claim has."""
    made: Any = of.api.put_claim(claim)
    handle = create(of.controllers[0], f"pvc-{made.metadata.uid}", "node-a")
    of.api.put_volume(f"pvc-{made.metadata.uid}", handle, made)
    return handle


def pod_with(of: Cluster, name: str, *claims: str) -> str:
    """The uid of a pod of a ReplicaSet, on node-a."""
    sources = [
        client.V1Volume(
            name=claim, persistent_volume_claim=client.V1PersistentVolumeClaimVolumeSource(claim_name=claim)
        )
        for claim in claims
    ]  # fmt: skip
    owner = client.V1OwnerReference(api_version="apps/v1", kind="ReplicaSet", name="web", uid="1", controller=True)
    pod = client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, owner_references=[owner]),
        spec=client.V1PodSpec(node_name="node-a", containers=[client.V1Container(name="c", image="c")], volumes=sources),
    )
    made: Any = of.api.core.create_namespaced_pod(NAMESPACE, pod)
    return str(made.metadata.uid)


def is_deleted(of: Cluster, name: str) -> bool:
    """Whether somebody has deleted the pod: without a kubelet it stays."""
    pod: Any = of.api.core.read_namespaced_pod(name, NAMESPACE)
    return pod.metadata.deletion_timestamp is not None


def look_until_deleted(of: Cluster, looker: Revive, pod: str) -> None:
    """A node may not answer in time at the first look."""

    def is_done() -> bool:
        looker.turn()
        return is_deleted(of, pod)

    wait_until(is_done)


def restart_engine(of: Cluster) -> None:
    engine = of.nodes["node-a"].engine
    engine.kill()
    engine.start()


def test_the_pod_that_has_the_new_device_is_left_alone(one: Cluster) -> None:
    volume, node = volume_of(one, "data"), one.nodes["node-a"]
    old = pod_with(one, "old", "data")
    node.stage(volume)
    node.publish(volume, old)
    restart_engine(one)
    new = pod_with(one, "new", "data")
    node.publish(volume, new)
    look_until_deleted(one, reviver(one), "old")
    assert not is_deleted(one, "new")
    assert REASON in one.api.events("Pod", "old")
    assert one.api.events("Pod", "new") == {}


def test_what_the_api_refused_is_done_at_the_next_look(one: Cluster) -> None:
    """Both volumes of the pod are told of, each to its claim."""
    volumes, node = [volume_of(one, claim) for claim in ("data", "logs")], one.nodes["node-a"]
    uid = pod_with(one, "web", "data", "logs")
    for volume in volumes:
        node.stage(volume)
        node.publish(volume, f"{uid}/{volume.rpartition(':')[2]}")
    restart_engine(one)
    allow(one, [rule for rule in CLUSTER_ROLE if "delete" not in rule.verbs] + [
        client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["list"])
    ])  # fmt: skip
    wait_until(may_not_delete)
    looker = reviver(one)

    def are_told() -> bool:
        looker.turn()
        return all(REASON in one.api.events("PersistentVolumeClaim", claim) for claim in ("data", "logs"))

    wait_until(are_told)
    assert not is_deleted(one, "web")
    allow(one, CLUSTER_ROLE)
    look_until_deleted(one, looker, "web")
