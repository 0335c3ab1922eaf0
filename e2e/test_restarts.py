"""The driver's own pods are replaced or die while its volumes are in use."""

from __future__ import annotations

import pytest

from e2e.cluster import SYSTEM, Manifest, Story
from e2e.slow import SlowStore


@pytest.mark.thorough
def test_controller_and_node_plugin_are_restarted_under_a_writer_and_a_snapshot(story: Story, slow: SlowStore) -> None:
    story.claim("data", "128Mi")
    story.fio("fio", "data")
    story.running("fio")
    slow.rate_bytes = 2 << 20
    story.run("fio", "while ! [ -s /data/file ]; do sleep 0.1; done")
    story.snapshot("monday", "data", "stillframe-slow")
    story.cut("monday")
    story.cluster.restart("DaemonSet", f"{SYSTEM}-node")
    story.cluster.restart("Deployment", f"{SYSTEM}-controller")
    slow.rate_bytes = None
    story.complete("monday")
    story.claim("another")
    story.pod("new", {"another": "/data"}, "echo kept > /data/file; sync; cat /data/file")
    assert story.done("new").strip() == "kept"
    story.fio_ended("fio")


def test_a_pod_whose_engine_is_deleted_is_told_and_made_again(story: Story) -> None:
    """The device is gone with the engine's pod; what was flushed is there when the owner makes the pod again."""
    story.claim("data")
    fio = ("fio --name=load --filename=/data/load --rw=randwrite --bs=4k --size=32m --direct=1 --ioengine=libaio "
           "--rate_iops=200 --time_based --runtime=600 --output-format=terse")  # fmt: skip
    pod = story.workload("app", {"data": "/data"}, f"[ -e /data/kept ] || date +%N > /data/kept; sync; {fio}")
    node = story.running(pod)
    story.run(pod, "while ! [ -s /data/load ]; do sleep 0.1; done")
    kept = story.run(pod, "cat /data/kept")
    first = story.get("Pod", pod)
    assert first is not None
    engine = story.cluster.pod_on("engine", node)
    story.cluster.delete("Pod", engine, SYSTEM)
    story.event(pod, "lost its device", "data", "its owner makes it again", seconds=120)
    story.event("data", "lost this volume's device")
    story.wait("Pod", pod, lambda found: found["metadata"]["uid"] != first["metadata"]["uid"]
               and found["status"]["phase"] == "Running", 120)  # fmt: skip
    assert story.run(pod, "cat /data/kept") == kept
    story.run(pod, "dd if=/dev/urandom of=/data/again bs=1M count=8 conv=fsync status=none; rm /data/again")


def transfer_of(engine: Manifest) -> Manifest:
    """The status of the container `transfer` of an engine's pod."""
    (found,) = (status for status in engine["status"]["initContainerStatuses"] if status["name"] == "transfer")
    return dict(found)


def test_uploads_go_on_when_their_container_is_killed(story: Story, slow: SlowStore) -> None:
    """Every process of it, at once, as the kernel does when it is over its memory limit."""
    story.claim("data", "128Mi")
    node, digest = story.filled("writer", "data", 32, "while date > /data/now; do sleep 1; done")
    slow.rate_bytes = 1 << 20
    try:
        story.snapshot("monday", "data", "stillframe-slow")
        story.cut("monday")
        name = story.cluster.pod_on("engine", node)
        engine = story.cluster.get("Pod", name, SYSTEM)
        assert engine is not None
        before = transfer_of(engine)
        container = before["containerID"].rpartition("/")[2]
        kill = f"kill -9 $(grep -l {container} /proc/[0-9]*/cgroup | cut -d / -f 3)"
        story.cluster.machines.on_node(node, "sh", "-ec", kill)
        story.cluster.wait("Pod", name, lambda found: transfer_of(found)["restartCount"] > before["restartCount"]
                           and transfer_of(found)["ready"], 120, SYSTEM)  # fmt: skip
        monday = story.get("VolumeSnapshot", "monday")
        assert monday is not None and not monday["status"]["readyToUse"], "it was too fast for this story"
    finally:
        slow.rate_bytes = None
    story.complete("monday")
    story.claim("restored", "128Mi", source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"restored": "/data"}, "md5sum /data/file")
    assert story.done("reader").strip() == digest
