"""Which pods use volumes of ours, as the check before an uninstallation sees it."""

from __future__ import annotations

from typing import Any

from kubernetes import client

from driver.cli.uninstall import Use
from driver.cli.uninstall import uses as uses_of
from driver.controller.seen import pod_claims, volume_seen


def volume(name: str, claim: str | None, driver: str | None = "csi.stillframe.io", namespace: str = "shop") -> Any:
    source = None if driver is None else client.V1CSIPersistentVolumeSource(driver=driver, volume_handle=name)
    reference = None if claim is None else client.V1ObjectReference(namespace=namespace, name=claim)
    spec = client.V1PersistentVolumeSpec(csi=source, claim_ref=reference)
    return client.V1PersistentVolume(metadata=client.V1ObjectMeta(name=name), spec=spec)


def pod(name: str, *sources: Any, node: str | None = "node-1", namespace: str = "shop") -> Any:
    spec = client.V1PodSpec(containers=[client.V1Container(name="c")], node_name=node, volumes=list(sources))
    return client.V1Pod(metadata=client.V1ObjectMeta(name=name, namespace=namespace), spec=spec)


def claim(name: str) -> Any:
    source = client.V1PersistentVolumeClaimVolumeSource(claim_name=name)
    return client.V1Volume(name="data", persistent_volume_claim=source)


def uses(volumes: list[Any], pods: list[Any]) -> list[Use]:
    return uses_of(filter(None, map(volume_seen, volumes)), filter(None, map(pod_claims, pods)))


def test_it_names_claims_volumes_pods_and_nodes() -> None:
    found = uses([volume("pv-1", "data"), volume("pv-2", "logs")], [pod("web", claim("logs")), pod("db", claim("data"))])
    assert [str(use) for use in found] == [
        "shop/data (volume pv-1) by pod db on node-1",
        "shop/logs (volume pv-2) by pod web on node-1",
    ]


def test_generic_ephemeral_volumes_count() -> None:
    scratch = client.V1Volume(name="scratch", ephemeral=client.V1EphemeralVolumeSource())
    assert [use.claim for use in uses([volume("pv-1", "db-scratch")], [pod("db", scratch)])] == ["db-scratch"]


def test_what_is_not_ours_or_on_no_node_does_not_count() -> None:
    volumes = [volume("pv-1", "a", driver="other.example.com"), volume("pv-2", "b", driver=None), volume("pv-3", None),
               volume("pv-4", "c", namespace="elsewhere"), volume("pv-5", "d")]  # fmt: skip
    pods = [pod("p", claim("a"), claim("b"), claim("c"), client.V1Volume(name="x")), pod("q", claim("d"), node=None)]
    assert uses(volumes, pods) == []
