"""PersistentVolumeClaims: where their volumes are made, how pods have them."""

from __future__ import annotations

import re

import pytest

from e2e.cluster import CLASS, Story


@pytest.mark.parametrize("storage_class", [CLASS, "stillframe-xfs", "stillframe-thin"])
def test_a_pod_has_a_file_system_and_finds_its_files_again(story: Story, storage_class: str) -> None:
    story.claim("data", "512Mi", storage_class=storage_class)
    story.pod("first", {"data": "/data"}, "seq 100000 > /data/numbers; sync")
    story.done("first")
    story.delete("Pod", "first")
    story.pod("second", {"data": "/data"}, "df -k /data; md5sum /data/numbers; seq 100000 | md5sum")
    output = story.done("second")
    digests = re.findall(r"^([0-9a-f]{32}) ", output, re.MULTILINE)
    assert len(digests) == 2 and digests[0] == digests[1]


def test_a_pod_has_a_block_device(story: Story) -> None:
    story.claim("raw", "64Mi", block=True)
    fio = ("fio --name=v --filename=/dev/raw --rw=randrw --bs=4k --size=64m --direct=1 --ioengine=libaio --iodepth=16 "
           "--verify=crc32c --verify_fatal=1 --minimal")  # fmt: skip
    story.pod("fio", {"raw": "/dev/raw"}, f"{fio}; blockdev --getsize64 /dev/raw")
    assert story.done("fio").split()[-1] == str(64 << 20)


def test_a_volume_is_made_where_the_pod_goes(story: Story) -> None:
    """A claim waits for its first pod; from then on the pod's node is the volume's."""
    node = story.cluster.nodes()[1]
    story.claim("data")
    story.event("data", "waiting for first consumer")
    story.pod("first", {"data": "/data"}, node=node)
    assert story.running("first") == node
    volume = story.bound("data")
    (term,) = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "topology.stillframe.io/node", "operator": "In", "values": [node]}]
    story.delete("Pod", "first")
    story.pod("second", {"data": "/data"})
    assert story.running("second") == node


def test_a_claim_larger_than_any_node_is_told_so(story: Story) -> None:
    story.claim("huge", "9Ti")
    story.pod("pod", {"huge": "/data"})
    message = story.event("pod", "did not have enough free storage")
    assert message.startswith("0/")
    claim = story.get("PersistentVolumeClaim", "huge")
    assert claim is not None and claim["status"]["phase"] == "Pending"


def test_a_pod_that_may_only_read(story: Story) -> None:
    story.claim("data")
    story.pod("writer", {"data": "/data"}, "echo kept > /data/file; sync")
    story.done("writer")
    story.delete("Pod", "writer")
    story.pod("reader", {"data": "/data"}, "cat /data/file; if touch /data/other; then exit 1; fi", read_only=True)
    assert "kept" in story.done("reader")


def test_a_volume_of_one_pod_alone(story: Story) -> None:
    story.claim("data", access="ReadWriteOncePod")
    story.pod("first", {"data": "/data"})
    story.running("first")
    story.pod("second", {"data": "/data"})
    story.event("second", "ReadWriteOncePod")
    story.delete("Pod", "first")
    story.running("second")


def test_a_volume_that_lives_as_long_as_its_pod(story: Story) -> None:
    template = {"spec": {"storageClassName": CLASS, "accessModes": ["ReadWriteOnce"],
                         "resources": {"requests": {"storage": "128Mi"}}}}  # fmt: skip
    scratch = {"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}
    story.pod("pod", {}, "echo here > /scratch/file; sleep infinity", volumes=[scratch])
    story.running("pod")
    volume = story.bound("pod-scratch")["metadata"]["name"]
    story.delete("Pod", "pod")
    story.cluster.wait_gone("PersistentVolumeClaim", "pod-scratch", 60, story.namespace)
    story.cluster.wait_gone("PersistentVolume", volume)


def test_twenty_claims_at_once(story: Story) -> None:
    names = [f"data-{number}" for number in range(20)]
    for name in names:
        story.claim(name, "64Mi", storage_class="stillframe-thin")
    for number, name in enumerate(names):
        story.pod(f"pod-{number}", {name: "/data"}, f"echo {name} > /data/name; sync; cat /data/name")
    for number, name in enumerate(names):
        assert story.done(f"pod-{number}", 240).split() == [name]


@pytest.mark.parametrize("storage_class", [CLASS, "stillframe-xfs"])
def test_a_volume_grows_while_it_is_used(story: Story, storage_class: str) -> None:
    """ext4 grows online only where the plugin has CAP_SYS_RESOURCE; elsewhere it grows with the claim's next pod."""
    story.claim("data", "320Mi", storage_class=storage_class)
    story.pod("pod", {"data": "/data"}, "echo kept > /data/file; sleep infinity")
    node = story.running("pod")
    before = int(story.run("pod", "df -k --output=size /data | tail -1"))
    story.cluster.change("PersistentVolumeClaim", "data", {"spec": {"resources": {"requests": {"storage": "640Mi"}}}},
                         story.namespace)  # fmt: skip
    if storage_class == CLASS and not may_grow_ext4(story, node):
        story.wait("PersistentVolume", story.bound("data")["metadata"]["name"],
                   lambda found: found["spec"]["capacity"]["storage"] == "640Mi")  # fmt: skip
        story.delete("Pod", "pod")
        story.pod("pod", {"data": "/data"})
        story.running("pod")
    story.wait("PersistentVolumeClaim", "data", lambda found: found["status"]["capacity"]["storage"] == "640Mi", 120)
    assert int(story.run("pod", "df -k --output=size /data | tail -1")) > 1.8 * before
    assert story.run("pod", "cat /data/file").strip() == "kept"


def may_grow_ext4(story: Story, node: str) -> bool:
    """Whether root on that node has CAP_SYS_RESOURCE (bit 24, linux/capability.h)."""
    status = story.cluster.machines.on_node(node, "cat", "/proc/self/status")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> 24 & 1)
