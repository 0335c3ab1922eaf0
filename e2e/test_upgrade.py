"""A new version: the controller and the node plugins roll, engines are replaced by hand, node by node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from driver import __version__
from e2e.cluster import SYSTEM, Story, until
from e2e.conftest import ROOT
from e2e.install import IMAGE, Release
from e2e.machines import Machines

pytestmark = pytest.mark.thorough

NEW = f"{__version__}.post1"
"""Of the image that is upgraded to, and of the driver in it."""


def newer_tree(folder: Path) -> Path:
    """A copy of this tree whose driver is of the version NEW."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__"))
    module = tree / "driver/__init__.py"
    module.write_text(module.read_text().replace(f'"{__version__}"', f'"{NEW}"'))
    return tree


def engine_version(story: Story, node: str) -> str:
    """Of the engine that runs on a node, as the node plugin there hears it."""
    command = ("stillframe", "--output", "json", "engine", "info")
    return str(json.loads(story.cluster.run(SYSTEM, story.cluster.pod_on("node", node), *command))["version"])


def images_of(story: Story, component: str) -> set[str]:
    return {container["image"].rpartition(":")[2] for pod in story.cluster.pods_of(component)
            for container in pod["spec"]["containers"] if "stillframe:" in container["image"]}  # fmt: skip


def wait_for_images(story: Story, component: str) -> None:
    """Until the last old pod is gone."""
    until(lambda: images_of(story, component) == {NEW}, 60, lambda: f"{component}: {images_of(story, component)}")


def test_an_upgrade_under_a_writer(story: Story, release: Release, machines: Machines, tmp_path: Path) -> None:
    """The old engine serves on, for the new plugin."""
    machines.build(f"{IMAGE.rpartition(':')[0]}:{NEW}", newer_tree(tmp_path))
    story.claim("data", "128Mi")
    story.fio("fio", "data")
    node = story.running("fio")
    old = images_of(story, "engine")
    release.install("--set", f"image.tag={NEW}")
    for kind, component in (("DaemonSet", "node"), ("Deployment", "controller")):
        story.cluster.rolled_out(kind, f"{SYSTEM}-{component}")
        wait_for_images(story, component)
    assert images_of(story, "engine") == old
    plugin = story.cluster.pod_on("node", node)
    assert NEW in story.cluster.run(SYSTEM, plugin, "stillframe", "--version")
    assert engine_version(story, node) == __version__
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
    assert engine_version(story, node) == __version__
    kubectl = story.cluster.kubectl
    kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
    kubectl("-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/component=engine",
            "--field-selector", f"spec.nodeName={node}")  # fmt: skip
    kubectl("uncordon", node)
    assert story.running(pod, 180) == node
    assert story.wait_for_output(pod) == kept
    assert engine_version(story, node) == NEW
