"""A new version: the controller and the node plugins roll, engines are replaced by hand, node by node."""

from __future__ import annotations

import pytest

from e2e.cluster import SYSTEM, Story, until
from e2e.conftest import ROOT
from e2e.install import IMAGE, Release
from e2e.machines import Machines

pytestmark = pytest.mark.thorough

NEW = "upgraded"


def images_of(story: Story, component: str) -> set[str]:
    return {container["image"].rpartition(":")[2] for pod in story.cluster.pods_of(component)
            for container in pod["spec"]["containers"] if "stillframe:" in container["image"]}  # fmt: skip


def wait_for_images(story: Story, component: str) -> None:
    """Until the last old pod is gone."""
    until(lambda: images_of(story, component) == {NEW}, 60, lambda: f"{component}: {images_of(story, component)}")


def test_an_upgrade_under_a_writer(story: Story, release: Release, machines: Machines) -> None:
    """The old engine serves on, for the new plugin."""
    machines.build(f"{IMAGE.rpartition(':')[0]}:{NEW}", ROOT)
    story.claim("data", "128Mi")
    story.fio("fio", "data")
    node = story.running("fio")
    old = images_of(story, "engine")
    release.install("--set", f"image.tag={NEW}")
    for kind, component in (("DaemonSet", "node"), ("Deployment", "controller")):
        story.cluster.rolled_out(kind, f"{SYSTEM}-{component}")
        wait_for_images(story, component)
    assert images_of(story, "engine") == old
    story.snapshot("monday", "data")
    story.complete("monday")
    story.claim("restored", "128Mi", source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"restored": "/data"}, "test -s /data/file && echo there", node=node)
    assert story.done("reader").strip() == "there"
    story.fio_ended("fio")


def test_engines_are_replaced_node_by_node(story: Story) -> None:
    """As docs/installation.md says: drain, delete the engine's pod, uncordon."""
    story.claim("data", "128Mi")
    script = "[ -e /data/kept ] || date +%N > /data/kept; sync; cat /data/kept; sleep infinity"
    pod = story.workload("app", {"data": "/data"}, script)
    node = story.running(pod)
    kept = story.wait_for_output(pod)
    kubectl = story.cluster.kubectl
    kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
    kubectl("-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/component=engine",
            "--field-selector", f"spec.nodeName={node}")  # fmt: skip
    kubectl("uncordon", node)
    assert story.running(pod, 180) == node
    assert story.wait_for_output(pod) == kept
    assert NEW in images_of(story, "engine")
