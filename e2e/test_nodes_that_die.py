"""A node loses its power: with everything that ran there, at once."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.cluster import SYSTEM, Story, until
from e2e.slow import SlowStore

pytestmark = pytest.mark.thorough

COUNTER = "python3 /writers/counter.py /data/log"


def mortal(story: Story) -> str:
    """A node that does not have the snapshot controller, which nobody makes again elsewhere for five minutes."""
    pods = story.cluster.every("Pod")
    needed = {pod["spec"].get("nodeName") for pod in pods if "snapshot-controller" in pod["metadata"]["name"]}
    return next(node for node in story.cluster.nodes() if node not in needed)


def is_ready(story: Story, node: str) -> bool:
    found = story.cluster.get("Node", node)
    conditions = found["status"].get("conditions") or () if found is not None else ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def wait_ready(story: Story, node: str, ready: bool, seconds: float = 120) -> None:
    until(lambda: is_ready(story, node) is ready, seconds, lambda: f"{node}: {story.cluster.get('Node', node)}")


def lost_power(snapshot: dict[str, Any]) -> bool:
    """Whether that is why it failed; before, it says that its node cannot be asked."""
    return "lost its power" in ((snapshot.get("status") or {}).get("error") or {}).get("message", "")


def started_again(pod: dict[str, Any]) -> bool:
    """Whether the containers run that a node began after its boot."""
    statuses = pod["status"].get("containerStatuses") or []
    return bool(statuses) and all(status["restartCount"] > 0 and "running" in status["state"] for status in statuses)


def start_as_new(story: Story, node: str) -> None:
    """Boot a node whose Node object was deleted. A kubelet that has just made it anew is at odds with itself until it is
    started again, which elsewhere its service manager does."""
    story.cluster.machines.start_node(node)
    until(lambda: story.cluster.get("Node", node), 60, lambda: f"there is no {node}")
    if not is_ready(story, node):
        story.cluster.machines.kill_node(node)
        story.cluster.machines.start_node(node)
    wait_ready(story, node, True)


@pytest.mark.timeout(900, func_only=True)
def test_a_node_that_dies_during_a_snapshot_and_comes_back(story: Story, slow: SlowStore) -> None:
    node = mortal(story)
    story.claim("data", "192Mi")
    pod = story.workload("writer", {"data": "/data"}, f"head -c 16M /dev/urandom > /data/file; sync; {COUNTER}", node)
    story.running(pod)
    story.wait_for_output(pod)
    slow.rate_bytes = 1 << 20
    try:
        story.snapshot("monday", "data", "stillframe-slow")
        story.cut("monday")
        said = story.newest(pod)
        story.cluster.machines.kill_node(node)
    finally:
        slow.rate_bytes = None
    story.cluster.machines.start_node(node)
    wait_ready(story, node, True)
    failed = story.wait("VolumeSnapshot", "monday", lost_power, 180)
    assert not failed["status"].get("readyToUse")
    story.wait("Pod", pod, started_again, 180)
    numbers = [int(line) for line in story.run(pod, "cat /data/log").split()]
    assert numbers[:said] == list(range(1, said + 1))
    story.delete("VolumeSnapshot", "monday")
    story.snapshot("tuesday", "data")
    story.complete("tuesday")


@pytest.mark.timeout(900, func_only=True)
def test_a_node_that_dies_for_good(story: Story, slow: SlowStore) -> None:
    """Its snapshots are used and deleted without it; once it is forgotten the claim goes, and is made anew elsewhere."""
    node = mortal(story)
    story.claim("data", "192Mi")
    story.pod("writer", {"data": "/data"}, f"head -c 16M /dev/urandom > /data/file; sync; {COUNTER}", node=node)
    story.running("writer")
    story.wait_for_output("writer")
    story.snapshot("kept", "data")
    story.complete("kept")
    story.snapshot("short", "data")
    story.complete("short")
    slow.rate_bytes = 1 << 20
    story.snapshot("unfinished", "data", "stillframe-slow")
    story.cut("unfinished")
    story.cluster.machines.kill_node(node)
    slow.rate_bytes = None
    try:
        wait_ready(story, node, False)
        story.delete("VolumeSnapshot", "short")
        story.delete("VolumeSnapshot", "unfinished")
        volume = story.bound("data")["metadata"]["name"]
        story.cluster.delete("Pod", "writer", story.namespace, grace_seconds=0)
        story.delete("PersistentVolumeClaim", "data")
        story.cluster.delete("Node", node)
        story.cluster.wait_gone("Node", node)
        controller = next(pod["metadata"]["name"] for pod in story.cluster.pods_of("controller")
                          if pod["spec"]["nodeName"] != node and pod["status"]["phase"] == "Running")  # fmt: skip
        story.cluster.run(SYSTEM, controller, "stillframe", "node", "forget", node, container="controller")
        story.cluster.wait_gone("PersistentVolume", volume, 120)
        story.claim("data", "192Mi", source=("VolumeSnapshot", "kept"))
        story.pod("writer", {"data": "/data"}, "cat /data/log")
        numbers = [int(line) for line in story.done("writer").split()]
        assert numbers and numbers == list(range(1, len(numbers) + 1))
    finally:
        start_as_new(story, node)
