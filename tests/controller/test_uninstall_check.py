"""The check before an uninstallation, on a real API and a real node: a mount of which no pod is left counts too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client

from driver.cli.attached import attached_in
from tests.apiserver import LABELS, NAMESPACE
from tests.clusters import Cluster, cluster
from tests.servers import free_port

CHECK = ("uninstall-check", "--namespace", NAMESPACE, "--wait")


@pytest.fixture
def one() -> Iterator[Cluster]:
    """A node whose plugin serves metrics, at the address and the port that its pod says."""
    with cluster() as made:
        made.controller()
        node = made.node("node-a")
        node.kill()
        port = free_port()
        node.start("--node", "node-a", "--http", str(port))
        made.api.delete_pod("plugin-node-a")
        served = [client.V1ContainerPort(name="metrics", container_port=port)]
        pod = client.V1Pod(
            metadata=client.V1ObjectMeta(name="plugin-node-a", labels=LABELS),
            spec=client.V1PodSpec(
                node_name="node-a", containers=[client.V1Container(name="node", image="stillframe", ports=served)]
            ),
        )
        made.api.core.create_namespaced_pod(NAMESPACE, pod)
        status = {"phase": "Running", "podIP": node.address, "podIPs": [{"ip": node.address}]}
        made.api.core.patch_namespaced_pod_status("plugin-node-a", NAMESPACE, {"status": status})
        try:
            yield made
        finally:
            node.unmount_all()


def test_a_volume_that_is_staged_is_in_the_way_until_it_is_taken_down(one: Cluster) -> None:
    node = one.nodes["node-a"]
    volume = node.create("pvc-forced", 64 << 20)
    node.stage(volume)
    refused = one.command(*CHECK, "0h")
    assert refused.returncode == 5 and "pvc-forced on node-a" in refused.stderr, refused.stderr
    assert "uninstall again" in refused.stderr
    node.unstage(volume)
    assert one.command(*CHECK, "1m").returncode == 0


def test_a_node_that_does_not_tell_is_named(one: Cluster) -> None:
    one.nodes["node-a"].kill()
    said = one.command(*CHECK, "0h")
    assert said.returncode == 0 and "not known: the devices of node-a (" in said.stdout, said.stdout + said.stderr


def test_metrics_say_what_has_a_device() -> None:
    text = (
        "# HELP stillframe_volume_attached Whether its device is there\n# TYPE stillframe_volume_attached gauge\n"
        'stillframe_volume_attached{volume="a"} 1.0\nstillframe_volume_attached{volume="b"} 0.0\n'
    )
    assert attached_in(text) == ["a"]
    assert attached_in("") == []
