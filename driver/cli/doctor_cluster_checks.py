"""What a cluster must have: checks of facts that `doctor_cluster` has gathered. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from driver.cli.doctor_checks import Check, Grade
from driver.rpc.names import DRIVER

SNAPSHOT_KINDS = ("volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses")
_INSTALL = "docs/installation.md, step 2"


@dataclass(frozen=True, slots=True)
class Workload:
    """A DaemonSet or Deployment of ours: how many pods it wants and has ready, and the image of its first container."""

    kind: str
    name: str
    component: str
    wanted: int
    ready: int
    image: str


@dataclass(frozen=True, slots=True)
class PodFact:
    """A pod of ours. `hindrance` is why it is not ready; empty if it is."""

    name: str
    component: str
    node: str
    image: str
    hindrance: str = ""


@dataclass(frozen=True, slots=True)
class NodeFact:
    """A Node object; `is_registered`: its CSINode names the driver."""

    name: str
    is_ready: bool
    is_registered: bool


@dataclass(frozen=True, slots=True)
class ClassFact:
    """A StorageClass or VolumeSnapshotClass of this driver; `problem` is what its parameters are refused for."""

    kind: str
    name: str
    repository: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What was found. `refused` names what the API would not tell, and why."""

    version: str
    namespace: str
    has_driver: bool
    snapshot_kinds: Sequence[str]
    has_snapshot_controller: bool
    nodes: Sequence[NodeFact]
    workloads: Sequence[Workload]
    pods: Sequence[PodFact]
    classes: Sequence[ClassFact]
    repositories: Sequence[str]
    refused: Sequence[str] = ()


def cluster_checks(facts: ClusterFacts) -> list[Check]:
    """All of them."""
    rooms = (_api, _snapshots, _workloads, _nodes, _versions, _classes, _inside_nodes)
    return [check for room in rooms for check in room(facts)]


def _check(name: str, found: str, problem: str = "", warning: str = "") -> Check:
    grade = Grade.PROBLEM if problem else Grade.WARNING if warning else Grade.OK
    return Check(name, grade, found, problem or warning)


def _api(facts: ClusterFacts) -> Iterable[Check]:
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in facts.version.lstrip("v").split(".")[:2]]
    yield _check("Kubernetes", facts.version, "use 1.29 or newer" if numbers < [1, 29] else "")
    for text in facts.refused:
        yield _check("not looked at", text, warning="ask with an account that may read it")
    driver = f"install the chart: helm install stillframe charts/stillframe -n {facts.namespace}"
    yield _check("CSIDriver", DRIVER if facts.has_driver else f"there is no {DRIVER}", "" if facts.has_driver else driver)


def _snapshots(facts: ClusterFacts) -> Iterable[Check]:
    missing = [kind for kind in SNAPSHOT_KINDS if kind not in facts.snapshot_kinds]
    fix = f"install the snapshot CRDs ({_INSTALL}), or set snapshots.enabled=false"
    yield _check("snapshot CRDs", f"missing: {', '.join(missing)}" if missing else "there", warning=fix if missing else "")
    if not missing:
        fix = f"no Deployment of it is to be seen; without it a VolumeSnapshot waits for ever: install it ({_INSTALL})"
        found = "there" if facts.has_snapshot_controller else "not found"
        yield _check("snapshot controller", found, warning="" if facts.has_snapshot_controller else fix)


def _workloads(facts: ClusterFacts) -> Iterable[Check]:
    for component in ("controller", "node", "engine"):
        if not any(item.component == component for item in facts.workloads):
            yield _check(component, f"namespace {facts.namespace} has none", "install the chart there, or give --system")
    for item in facts.workloads:
        fix = f"look at its pods: kubectl -n {facts.namespace} get pods -l app.kubernetes.io/component={item.component}"
        yield _check(f"{item.kind} {item.name}", f"{item.ready} of {item.wanted} pods are ready",
                     fix if item.ready < item.wanted else "")  # fmt: skip
    for pod in facts.pods:
        if pod.hindrance:
            fix = f"kubectl -n {facts.namespace} describe pod {pod.name}"
            yield _check(f"pod {pod.name}", f"on node {pod.node or 'none'}: {pod.hindrance}", fix)


def _nodes(facts: ClusterFacts) -> Iterable[Check]:
    ours = {pod.node for pod in facts.pods if pod.component == "node"}
    for node in facts.nodes:
        if not node.is_ready:
            fix = f"bring it back; if it is gone for good: delete the Node, and stillframe node forget {node.name}"
            yield _check(f"node {node.name}", "is NotReady", warning=fix)
        elif node.name not in ours:
            yield _check(f"node {node.name}", "runs no node plugin", warning="taints and node.nodeSelector decide that")
        elif not node.is_registered:
            fix = "look at the node plugin's log there; kubeletFolder must be kubelet's folder"
            yield _check(f"node {node.name}", f"kubelet does not know {DRIVER}", fix)
        else:
            yield _check(f"node {node.name}", "is Ready, and kubelet knows the driver")


def _versions(facts: ClusterFacts) -> Iterable[Check]:
    wanted = {item.component: item.image for item in facts.workloads}
    for component, image in wanted.items():
        old = sorted(pod.node or pod.name for pod in facts.pods if pod.component == component and pod.image != image)
        by_hand = "engines are replaced by hand, node by node (docs/operations.md)"
        fix = by_hand if component == "engine" else "it is being rolled"
        found = f"{image}, but not yet on {', '.join(old)}" if old else image
        yield _check(f"version of {component}", found, warning=fix if old else "")


def _classes(facts: ClusterFacts) -> Iterable[Check]:
    for item in facts.classes:
        name = f"{item.kind} {item.name}"
        if item.problem:
            yield _check(name, item.problem, "make it anew: its parameters cannot be changed (docs/csi.md has them)")
        elif item.repository and item.repository not in facts.repositories:
            known = ", ".join(facts.repositories) or "none"
            fix = f"add it to the chart's repositories, or name one that is there: {known}"
            yield _check(name, f"there is no repository {item.repository!r}", fix)
        else:
            known = f"repository {item.repository} is configured" if item.repository else "its parameters are known"
            yield _check(name, known)
    if not any(item.kind == "StorageClass" for item in facts.classes):
        yield _check("StorageClass", f"none has the provisioner {DRIVER}", warning="set the chart's storageClasses")
    if not facts.repositories:
        yield _check("repositories", "none is configured", warning="set the chart's repositories: snapshots need one")


def _inside_nodes(facts: ClusterFacts) -> Iterable[Check]:
    """What only a node's own containers see, and with which commands to ask there."""
    for pod in facts.pods:
        if pod.component == "engine" and not pod.hindrance:
            ask = f"kubectl -n {facts.namespace} exec {pod.name}"
            own = f"{ask} -c engine -- stillframe doctor --only kernel --only host --only running"
            remote = f"{ask} -c transfer -- stillframe doctor --only repositories"
            found = "kernel, privileges, disk, and whether its keys open the repositories: the API does not tell"
            yield Check(f"inside node {pod.node}", Grade.UNSEEN, found, f"ask there: {own}; {remote}")
