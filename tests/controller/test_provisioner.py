"""The real csi-provisioner beside the controller plugin: claims become volumes where they are scheduled, and move on."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from driver.rpc.names import DRIVER, TOPOLOGY_KEY
from tests.apiserver import NAMESPACE
from tests.clusters import Cluster, cluster
from tests.servers import find_program
from tests.waiting import wait_until

SELECTED = "volume.kubernetes.io/selected-node"
MODES = ("WaitForFirstConsumer", "Immediate")


class Claims:
    """What the scheduler and people do."""

    def __init__(self, of: Cluster) -> None:
        self._core = of.api.core

    def make(self, name: str, mode: str, node: str | None = None) -> None:
        annotations = {"volume.kubernetes.io/storage-provisioner": DRIVER} | ({SELECTED: node} if node else {})
        spec = client.V1PersistentVolumeClaimSpec(
            access_modes=["ReadWriteOnce"], storage_class_name=mode.lower(),
            resources=client.V1VolumeResourceRequirements(requests={"storage": "64Mi"}),
        )  # fmt: skip
        meta = client.V1ObjectMeta(name=name, annotations=annotations)
        self._core.create_namespaced_persistent_volume_claim(
            NAMESPACE, client.V1PersistentVolumeClaim(metadata=meta, spec=spec)
        )

    def _metadata(self, name: str) -> client.V1ObjectMeta:
        found = self._core.read_namespaced_persistent_volume_claim(name, NAMESPACE).metadata
        assert found is not None
        return found

    def node(self, name: str) -> str | None:
        """The node that the claim is scheduled to."""
        return (self._metadata(name).annotations or {}).get(SELECTED)

    def schedule(self, name: str, node: str) -> None:
        body = {"metadata": {"annotations": {SELECTED: node}}}
        self._core.patch_namespaced_persistent_volume_claim(name, NAMESPACE, body)

    def handle(self, name: str) -> str | None:
        """The volume's, once there is a PersistentVolume."""
        try:
            volume = self._core.read_persistent_volume(f"pvc-{self._metadata(name).uid}")
        except ApiException:
            return None
        assert volume.spec is not None and volume.spec.csi is not None
        return str(volume.spec.csi.volume_handle)

    def clear(self) -> None:
        for claim in self._core.list_namespaced_persistent_volume_claim(NAMESPACE).items:
            name = str(claim.metadata.name if claim.metadata else "")
            self._core.delete_namespaced_persistent_volume_claim(name, NAMESPACE)
            with contextlib.suppress(ApiException):
                body = {"metadata": {"finalizers": None}}
                self._core.patch_namespaced_persistent_volume_claim(name, NAMESPACE, body)


@pytest.fixture
def two() -> Iterator[Cluster]:
    """Two nodes, their CSINodes as kubelet makes them, classes, and the provisioner with the flags that the chart gives."""
    program = find_program("csi-provisioner")
    if program is None:
        pytest.skip("csi-provisioner is not there: set STILLFRAME_TESTBED to the test bed's program")
    with cluster() as made:
        controller = made.controller()
        storage = client.StorageV1Api(made.api.core.api_client)
        for name in ("node-a", "node-b"):
            made.node(name)
            made.api.core.patch_node(name, {"metadata": {"labels": {TOPOLOGY_KEY: name}}})
            driver = client.V1CSINodeDriver(name=DRIVER, node_id=name, topology_keys=[TOPOLOGY_KEY])
            spec = client.V1CSINodeSpec(drivers=[driver])
            storage.create_csi_node(client.V1CSINode(metadata=client.V1ObjectMeta(name=name), spec=spec))
        for mode in MODES:
            meta = client.V1ObjectMeta(name=mode.lower())
            storage.create_storage_class(
                client.V1StorageClass(
                    metadata=meta, provisioner=DRIVER, volume_binding_mode=mode, parameters={"provisioning": "thin"}
                )
            )
        command = [
            program, "--csi-address", controller.endpoint.removeprefix("unix://"), "--kubeconfig",
            str(made.api.kubeconfig("admin")), "--strict-topology", "--immediate-topology=false",
            "--extra-create-metadata", "--default-fstype=ext4",
        ]  # fmt: skip
        with (made.folder / "provisioner.log").open("wb") as log:
            provisioner = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield made
        finally:
            provisioner.kill()
            provisioner.wait()
            Claims(made).clear()
            storage.delete_collection_csi_node()
            storage.delete_collection_storage_class()


def test_claims_get_volumes_where_they_are_scheduled_and_leave_a_node_that_is_not_ready(two: Cluster) -> None:
    claims = Claims(two)
    claims.make("pinned", "WaitForFirstConsumer", "node-b")
    pinned = wait_until(lambda: claims.handle("pinned"))
    assert pinned in two.nodes["node-b"].volumes().values()
    claims.make("anywhere", "Immediate")
    assert wait_until(lambda: claims.handle("anywhere"))
    two.api.put_node("node-a", ready=False)
    wait_until(lambda: 'stillframe_nodes{state="not_ready"} 1.0' in two.controllers[0].get("/metrics"))
    claims.make("moving", "WaitForFirstConsumer", "node-a")
    wait_until(lambda: claims.node("moving") is None)
    claims.schedule("moving", "node-b")
    assert wait_until(lambda: claims.handle("moving")).startswith("node-b:")
