"""What `stillframe doctor` makes of a host's and of a cluster's facts: each thing amiss is one line with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from driver.cli.doctor_checks import GROUPS, Check, Grade, HostFacts, RepositoryFact, checks
from driver.cli.doctor_cluster import hindrance
from driver.cli.doctor_cluster_checks import (
    SNAPSHOT_KINDS,
    ClassFact,
    ClusterFacts,
    NodeFact,
    PodFact,
    Workload,
    cluster_checks,
)

GIB = 1 << 30
ENGINE = {"version": "1.0", "settings": {"spill_bytes": 4 * GIB, "node_bytes": GIB}}
WELL = HostFacts(
    version="1.0", user=0, kernel="6.12.3-amd64", machine="x86_64", capabilities=(1 << 41) - 1,
    features={"memfd": "", "membarrier": ""}, fuse=45, loop="", fuse_timeout=0, programs={"mkfs.ext4": "mke2fs 1.47"},
    cgroup=2, state="/var/lib/stillframe", state_error="", state_type="ext4", state_free=9 * GIB, direct_io="",
    memory_free=8 * GIB, engine=ENGINE, plugin="1.0",
    repositories=(RepositoryFact("main", "s3://b", clock=-3.0),),
)  # fmt: skip
REPOSITORY = RepositoryFact("main", "s3://b")
P, W = Grade.PROBLEM, Grade.WARNING


def amiss(found: Iterable[Check]) -> list[Check]:
    found = list(found)
    assert len({check.name for check in found}) == len(found)
    assert all(check.found and bool(check.fix) is (check.grade is not Grade.OK) for check in found)
    return [check for check in found if check.grade is not Grade.OK]


def test_a_host_that_is_well_has_nothing_amiss() -> None:
    assert amiss(checks(WELL, GROUPS)) == []
    assert {check.name for check in checks(WELL, ["repositories"])} == {
        "repository main", "repository main: conditional PUT", "repository main: clock"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "grade", "words"),
    [
        ({"kernel": "5.10.0"}, "kernel", P, "5.15 or newer"),
        ({"kernel": "5.15.0-91"}, "kernel", W, "from 6.2 on"),
        ({"kernel": "strange"}, "kernel", P, "5.15 or newer"),
        ({"machine": "riscv64"}, "machine", P, "aarch64"),
        ({"user": 1000}, "user", P, "as root"),
        ({"features": {"membarrier": "Function not implemented"}}, "membarrier", P, "newer kernel"),
        ({"fuse": "/dev/fuse: No such file or directory"}, "/dev/fuse", P, "modprobe fuse"),
        ({"fuse": 26}, "/dev/fuse", P, "5.4"),
        ({"fuse": None}, "/dev/fuse", W, "as root"),
        ({"loop": "there is no /dev/loop-control"}, "loop device with direct I/O", P, "modprobe loop"),
        ({"loop": None}, "loop device with direct I/O", W, "as root"),
        ({"capabilities": 1 << 14 | 1 << 24}, "CAP_SYS_ADMIN", P, "privileged"),
        ({"capabilities": 1 << 14 | 1 << 21}, "CAP_SYS_RESOURCE", W, "OOM"),
        ({"capabilities": 1 << 24 | 1 << 21}, "CAP_IPC_LOCK", W, "swaps"),
        ({"fuse_timeout": 60}, "fs.fuse.max_request_timeout", W, "set it to 0"),
        ({"programs": {"mkfs.xfs": None}}, "mkfs.xfs", P, "install xfsprogs"),
        ({"cgroup": 0}, "control groups", W, "--transfer-memory"),
        ({"state_error": "No such file or directory"}, "state folder", P, "mkdir -p -m 700 /var/lib/stillframe"),
        ({"state_type": "btrfs"}, "state folder", W, "ext4 or xfs"),
        ({"direct_io": "Invalid argument"}, "direct I/O in the state folder", P, "ext4 or xfs"),
        ({"state_free": 3 * GIB}, "free", W, "may spill 4.0 GiB"),
        ({"state_free": 1, "engine": {"version": "1.0", "settings": {}}}, "free", W, "make room"),
        ({"memory_free": GIB // 2}, "free", W, "--node-memory"),
        ({"engine": "no engine runs"}, "engine", W, "engine run"),
        ({"engine": {**ENGINE, "version": "0.9"}}, "engine", W, "--take-over"),
        ({"plugin": "0.9"}, "node plugin", W, "1.0"),
        ({"repositories": ()}, "repositories", W, "repositories.toml"),
        ({"repositories": "repositories.toml: it must be TOML"}, "repositories", P, "README"),
        ({"repositories": (replace(REPOSITORY, error="refused", hint="look"),)}, "repository main", P, "look"),
        ({"repositories": (replace(REPOSITORY, error="refused"),)}, "repository main", P, "s3://b"),
        ({"repositories": (replace(REPOSITORY, conditional_put=False),)}, "repository main: conditional PUT", W, "If-None"),
        ({"repositories": (replace(REPOSITORY, clock=-70.0),)}, "repository main: clock", W, "NTP"),
        ({"repositories": (replace(REPOSITORY, clock=901.0),)}, "repository main: clock", P, "NTP"),
    ],
)
def test_what_is_amiss_on_a_host(change: dict[str, Any], name: str, grade: Grade, words: str) -> None:
    found = amiss(checks(replace(WELL, **change), GROUPS))
    assert [(check.name, check.grade) for check in found] == [(name, grade)]
    assert words in found[0].fix


def test_who_is_not_root_is_told_to_be_it_not_to_change_the_host() -> None:
    facts = replace(WELL, user=65534, direct_io="Permission denied", engine="engine.sock may not be opened by you")
    found = {check.name: check.fix for check in amiss(checks(facts, GROUPS))}
    assert all("as root" in found[name] for name in ("user", "direct I/O in the state folder", "engine"))


COMPONENTS = ("controller", "node", "engine")
IMAGE, OLD = "stillframe:1.0", "stillframe:0.9"
CLUSTER = ClusterFacts(
    version="v1.37.2", namespace="stillframe", has_driver=True, snapshot_kinds=SNAPSHOT_KINDS, has_snapshot_controller=True,
    nodes=(NodeFact("node-a", is_ready=True, is_registered=True),),
    workloads=tuple(Workload("DaemonSet", f"stillframe-{name}", name, 1, 1, IMAGE) for name in COMPONENTS),
    pods=tuple(PodFact(f"{name}-x", name, "node-a", IMAGE) for name in COMPONENTS),
    classes=(ClassFact("StorageClass", "stillframe"), ClassFact("VolumeSnapshotClass", "stillframe", "main")),
    repositories=("main",),
)  # fmt: skip
ENGINE_POD = CLUSTER.pods[2]


def amiss_in(facts: ClusterFacts) -> list[Check]:
    """Without what cannot be seen from outside."""
    return [check for check in amiss(cluster_checks(facts)) if check.grade is not Grade.UNSEEN]


def test_a_cluster_that_is_well_has_nothing_amiss() -> None:
    assert amiss_in(CLUSTER) == []


def test_what_only_a_node_can_tell_is_named_with_the_commands_that_ask_it() -> None:
    hindered = replace(ENGINE_POD, name="engine-y", node="node-b", hindrance="ImagePullBackOff")
    found = cluster_checks(replace(CLUSTER, pods=(*CLUSTER.pods, hindered)))
    (unseen,) = [check for check in found if check.grade is Grade.UNSEEN]
    assert unseen.name == "inside node node-a" and "privileges" in unseen.found and "repositories" in unseen.found
    commands = unseen.fix.removeprefix("ask there: ").split("; ")
    command = r"kubectl -n stillframe exec engine-x -c (\w+) -- stillframe (.*)"
    found_in = [match for match in (re.fullmatch(command, each) for each in commands) if match]
    assert [match[1] for match in found_in] == ["engine", "transfer"]
    asked = [word for match in found_in for word in match[2].split()]
    assert sorted(word for word in asked if word not in ("doctor", "--only")) == sorted(GROUPS)


@pytest.mark.parametrize(
    ("change", "name", "grade", "words"),
    [
        ({"version": "v1.28.9"}, "Kubernetes", P, "1.29"),
        ({"refused": ("cannot list pods: 403",)}, "not looked at", W, "account"),
        ({"has_driver": False}, "CSIDriver", P, "helm install stillframe charts/stillframe -n stillframe"),
        ({"snapshot_kinds": SNAPSHOT_KINDS[1:]}, "snapshot CRDs", W, "installation.md"),
        ({"has_snapshot_controller": False}, "snapshot controller", W, "waits for ever"),
        ({"workloads": CLUSTER.workloads[:2]}, "engine", P, "--system"),
        ({"workloads": (*CLUSTER.workloads[:2], replace(CLUSTER.workloads[2], ready=0))}, "DaemonSet stillframe-engine", P,
         "component=engine"),
        ({"pods": (*CLUSTER.pods, replace(ENGINE_POD, name="engine-y", hindrance="ImagePullBackOff"))}, "pod engine-y", P,
         "describe pod engine-y"),
        ({"pods": (*CLUSTER.pods[:2], replace(ENGINE_POD, image=OLD))}, "version of engine", W, "by hand"),
        ({"nodes": (NodeFact("node-a", is_ready=False, is_registered=True),)}, "node node-a", W, "node forget node-a"),
        ({"nodes": (NodeFact("node-a", is_ready=True, is_registered=False),)}, "node node-a", P, "kubeletFolder"),
        ({"nodes": (*CLUSTER.nodes, NodeFact("node-b", is_ready=True, is_registered=False))}, "node node-b", W, "taints"),
        ({"classes": (CLUSTER.classes[0], ClassFact("VolumeSnapshotClass", "far", "far"))}, "VolumeSnapshotClass far", P,
         "add it to the chart's repositories, or name one that is there: main"),
        ({"classes": (ClassFact("StorageClass", "s", problem="there is no parameter 'x'"),)}, "StorageClass s", P, "anew"),
        ({"classes": CLUSTER.classes[1:]}, "StorageClass", W, "storageClasses"),
        ({"repositories": (), "classes": CLUSTER.classes[:1]}, "repositories", W, "the chart's repositories"),
    ],
)  # fmt: skip
def test_what_is_amiss_in_a_cluster(change: dict[str, Any], name: str, grade: Grade, words: str) -> None:
    found = amiss_in(replace(CLUSTER, **change))
    assert [(check.name, check.grade) for check in found] == [(name, grade)]
    assert words in found[0].fix


def test_why_a_pod_is_not_ready() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    waiting = {"name": "engine", "ready": False, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such"}}}
    unplaced = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}
    assert hindrance(ready) == ""
    assert hindrance({"containerStatuses": [waiting]}) == "container engine: ImagePullBackOff: no such"
    assert hindrance(unplaced) == "0/3 nodes are available"
    assert hindrance({"phase": "Pending"}) == "Pending"
