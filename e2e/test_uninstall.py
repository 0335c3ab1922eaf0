"""The driver is taken away; what it leaves, and what a new installation finds in the bucket."""

from __future__ import annotations

import subprocess

import pytest

from e2e.cluster import SYSTEM, Story, until
from e2e.install import Release
from e2e.test_snapshots import import_snapshot

pytestmark = pytest.mark.thorough

STATE = "/var/lib/stillframe"


SIGNS = {
    "mounts": f"grep -e '{STATE}/' -e /run/stillframe/ -e csi.stillframe.io /proc/mounts",
    "loop devices": f"grep -H {STATE}/run/disks/ /sys/block/loop*/loop/backing_file",
    "processes": "grep -la '/opt/stillframe/[b]in' /proc/[0-9]*/cmdline",
}


def left_on(story: Story, node: str) -> dict[str, list[str]]:
    """What there is of the driver on a node; a kind of which there is nothing is left out. Nodes may share one kernel, and
    then see each other's devices and processes."""
    found = {}
    for kind, look in SIGNS.items():
        lines = story.cluster.machines.on_node(node, "sh", "-c", f"{look} 2>/dev/null; true").splitlines()
        if lines:
            found[kind] = lines
    return found


def wait_clean(story: Story, node: str) -> None:
    until(lambda: not left_on(story, node), 30, lambda: f"on {node}: {left_on(story, node)}")


@pytest.mark.timeout(900, func_only=True)
def test_the_driver_goes_and_leaves_nothing_and_finds_its_snapshots_in_an_empty_cluster(
    story: Story, release: Release
) -> None:
    story.claim("data", "128Mi")
    story.pod("pod", {"data": "/data"}, "echo kept > /data/file; sync; echo; sleep infinity")
    node = story.running("pod")
    story.wait_for_output("pod")
    assert left_on(story, node).keys() == SIGNS.keys()
    with pytest.raises(subprocess.CalledProcessError) as refused:
        release.remove()
    assert f"{story.namespace}/data" in (refused.value.stdout + refused.value.stderr)
    assert story.run("pod", "cat /data/file").strip() == "kept"

    story.snapshot("kept", "data", "stillframe-retain")
    story.complete("kept")
    content = story.content("kept")["metadata"]["name"]
    handle = story.content("kept")["status"]["snapshotHandle"]
    story.delete("VolumeSnapshot", "kept")
    story.cluster.delete("VolumeSnapshotContent", content)
    story.delete("Pod", "pod")
    volume = story.bound("data")["metadata"]["name"]
    story.delete("PersistentVolumeClaim", "data")
    story.cluster.wait_gone("PersistentVolume", volume)

    release.remove()
    until(lambda: not story.cluster.every("Pod", SYSTEM), 120, lambda: f"{story.cluster.every('Pod', SYSTEM)}")
    for node in story.cluster.nodes():
        wait_clean(story, node)
        story.cluster.machines.on_node(node, "sh", "-c", f"rm -rf {STATE}/*")

    release.install()
    import_snapshot(story, "imported", handle)
    story.complete("imported")
    story.claim("again", "128Mi", source=("VolumeSnapshot", "imported"))
    story.pod("reader", {"again": "/data"}, "cat /data/file")
    assert story.done("reader").strip() == "kept"
