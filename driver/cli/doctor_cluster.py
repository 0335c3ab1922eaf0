"""Gathers what `doctor_cluster_checks` judges, from the Kubernetes API alone. Any thread."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from driver.cli.doctor_cluster_checks import SNAPSHOT_KINDS, ClassFact, ClusterFacts, NodeFact, PodFact, Workload
from driver.controller.kube import Kube
from driver.core.errors import InvalidArgument, KubernetesUnavailable
from driver.rpc import parameters
from driver.rpc.errors import text_of
from driver.rpc.names import DRIVER

_OURS: Final = "app.kubernetes.io/name=stillframe"
_SNAPSHOTS: Final = "/apis/snapshot.storage.k8s.io/v1"
T = TypeVar("T")
Manifest = dict[str, Any]


def gather(kube: Kube, namespace: str) -> ClusterFacts:
    """Facts about the cluster, and the installation in a namespace. Raises KubernetesUnavailable if the API does
    not answer; what it refuses is a fact."""
    version = kube.read("/version") or {}
    refused: list[str] = []

    def ask(what: Callable[[], T], otherwise: T) -> T:
        try:
            return what()
        except KubernetesUnavailable as error:
            refused.append(error.message)
            return otherwise

    kinds = ask(lambda: kube.read(_SNAPSHOTS), None) or {}
    served = [item["name"] for item in kinds.get("resources", [])]
    return ClusterFacts(
        version=str(version.get("gitVersion", "unknown")), namespace=namespace,
        has_driver=ask(lambda: kube.read(f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}"), None) is not None,
        snapshot_kinds=[kind for kind in SNAPSHOT_KINDS if kind in served],
        has_snapshot_controller=ask(lambda: _has_snapshot_controller(kube), True),
        nodes=ask(lambda: _nodes(kube), ()), workloads=ask(lambda: _workloads(kube, namespace), ()),
        pods=ask(lambda: _pods(kube, namespace), ()), classes=ask(lambda: _classes(kube), ()),
        repositories=ask(lambda: _repositories(kube, namespace), ()), refused=tuple(refused),
    )  # fmt: skip


def _labels(item: Manifest) -> Manifest:
    return item["metadata"].get("labels") or {}


def _component(item: Manifest) -> str:
    return str(_labels(item).get("app.kubernetes.io/component", ""))


def _has_snapshot_controller(kube: Kube) -> bool:
    return any(
        "snapshot-controller" in container["image"]
        for item in kube.every("/apis/apps/v1/deployments")
        for container in item["spec"]["template"]["spec"]["containers"]
    )


def _nodes(kube: Kube) -> Sequence[NodeFact]:
    registered = {
        item["metadata"]["name"]
        for item in kube.every("/apis/storage.k8s.io/v1/csinodes")
        if any(driver["name"] == DRIVER for driver in item["spec"].get("drivers") or ())
    }
    found = []
    for item in kube.every("/api/v1/nodes"):
        conditions = item.get("status", {}).get("conditions") or ()
        is_ready = any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)
        found.append(NodeFact(item["metadata"]["name"], is_ready, item["metadata"]["name"] in registered))
    return found


def _workloads(kube: Kube, namespace: str) -> Sequence[Workload]:
    found = []
    for kind, wanted, ready in (
        ("DaemonSet", "desiredNumberScheduled", "numberReady"), ("Deployment", "replicas", "readyReplicas")
    ):  # fmt: skip
        path = f"/apis/apps/v1/namespaces/{namespace}/{kind.lower()}s"
        for item in kube.every(path, labelSelector=_OURS):
            status, image = item.get("status", {}), item["spec"]["template"]["spec"]["containers"][0]["image"]
            counts = int(status.get(wanted, 0)), int(status.get(ready, 0))
            found.append(Workload(kind, item["metadata"]["name"], _component(item), *counts, image))
    return found


def _pods(kube: Kube, namespace: str) -> Sequence[PodFact]:
    found = []
    for item in kube.every(f"/api/v1/namespaces/{namespace}/pods", labelSelector=_OURS):
        if _component(item) not in ("controller", "node", "engine"):
            continue
        image = item["spec"]["containers"][0]["image"]
        node = item["spec"].get("nodeName", "")
        found.append(PodFact(item["metadata"]["name"], _component(item), node, image, hindrance(item.get("status", {}))))
    return found


def hindrance(status: Manifest) -> str:
    """Why a pod of that status is not ready; empty if it is. Pure."""
    conditions = status.get("conditions") or ()
    if any((each["type"], each["status"]) == ("Ready", "True") for each in conditions):
        return ""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        for state in (container.get("state") or {}).values():
            if state and state.get("reason") and not container.get("ready"):
                more = f": {state['message']}" if state.get("message") else ""
                return f"container {container['name']}: {state['reason']}{more}"
    for each in conditions:
        if each["status"] != "True" and each.get("message"):
            return str(each["message"])
    return str(status.get("phase", "unknown"))


def _classes(kube: Kube) -> Sequence[ClassFact]:
    found = []
    for item in kube.every("/apis/storage.k8s.io/v1/storageclasses"):
        if item["provisioner"] == DRIVER:
            given = item.get("parameters") or {}
            problem = _problem(lambda given=given: parameters.of_volume(given))  # type: ignore[misc]
            found.append(ClassFact("StorageClass", item["metadata"]["name"], "", problem))
    for item in kube.every(f"{_SNAPSHOTS}/volumesnapshotclasses"):
        if item["driver"] == DRIVER:
            given = item.get("parameters") or {}
            problem = _problem(lambda given=given: parameters.of_snapshot(given))  # type: ignore[misc]
            repository = given.get("repository", "")
            found.append(ClassFact("VolumeSnapshotClass", item["metadata"]["name"], repository, problem))
    return found


def _problem(parse: Callable[[], object]) -> str:
    try:
        parse()
    except InvalidArgument as error:
        return text_of(error)
    return ""


def _repositories(kube: Kube, namespace: str) -> Sequence[str]:
    found: list[str] = []
    selector = f"{_OURS},app.kubernetes.io/component=repositories"
    for item in kube.every(f"/api/v1/namespaces/{namespace}/configmaps", labelSelector=selector):
        try:
            tables = tomllib.loads((item.get("data") or {}).get("repositories.toml", ""))
        except tomllib.TOMLDecodeError:
            continue
        found += tables.get("repositories", {})
    return found
