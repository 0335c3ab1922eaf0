"""VolumeSnapshots: what they hold, where they can be restored, how long they live."""

from __future__ import annotations

import pytest

from e2e.cluster import CLASS, Story

INCOMPAT_OFFSET = 1024 + 0x60
INCOMPAT_RECOVER = 0x4
"""Where an ext4 has its s_feature_incompat, and the bit that says that its journal is to be replayed (fs/ext4/ext4.h)."""


def other_node(story: Story, node: str) -> str:
    return next(name for name in story.cluster.nodes() if name != node)


def wait_for_numbers(story: Story, pod: str, count: int = 20) -> None:
    story.running(pod)
    story.wait("Pod", pod, lambda _: len(story.cluster.log(story.namespace, pod).split()) >= count)


def check_numbers(log: str, least: int, most: int) -> None:
    """A counter's file has every number from 1 on, to one within the bounds."""
    numbers = [int(line) for line in log.split("\n")[:-1]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert least <= len(numbers) <= most


@pytest.mark.parametrize("storage_class", [CLASS, "stillframe-xfs"])
def test_a_file_system_is_restored_as_it_was_at_the_cut(story: Story, storage_class: str) -> None:
    """On the same node, and on another one."""
    story.claim("data", "320Mi", storage_class=storage_class)
    story.pod("writer", {"data": "/data"}, "python3 /writers/counter.py /data/log")
    wait_for_numbers(story, "writer")
    before = story.newest("writer")
    story.snapshot("monday", "data")
    story.cut("monday")
    after = story.newest("writer") + 1  # one may be in the file and not yet said
    story.complete("monday")
    assert story.newest("writer") > after, "the writer stood still"
    node = story.running("writer")
    nodes = {"here": node, "there": other_node(story, node)}
    for claim, where in nodes.items():
        story.claim(claim, "320Mi", storage_class=storage_class, source=("VolumeSnapshot", "monday"))
        story.pod(f"reader-{claim}", {claim: "/data"}, "cat /data/log", node=where)
    for claim in nodes:
        check_numbers(story.done(f"reader-{claim}"), before, after)


def test_a_block_device_is_restored_as_it_was_at_the_cut(story: Story) -> None:
    story.claim("raw", "96Mi", block=True)
    story.pod("writer", {"raw": "/dev/raw"}, "python3 /writers/stamps.py write /dev/raw")
    wait_for_numbers(story, "writer")
    before = story.newest("writer")
    story.snapshot("monday", "raw")
    story.complete("monday")
    after = story.newest("writer") + 16
    story.claim("restored", "96Mi", block=True, source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"restored": "/dev/raw"}, "python3 /writers/stamps.py check /dev/raw",
              node=other_node(story, story.running("writer")))  # fmt: skip
    assert before <= int(story.done("reader")) <= after


def test_a_database_is_consistent_in_every_snapshot(story: Story) -> None:
    story.claim("data", "512Mi")
    story.pod("writer", {"data": "/data"}, "python3 /writers/ledger.py write /data/ledger")
    wait_for_numbers(story, "writer")
    before = []
    for number in range(3):
        before.append(story.newest("writer"))
        story.snapshot(f"s{number}", "data")
        story.complete(f"s{number}")
        story.claim(f"r{number}", "512Mi", source=("VolumeSnapshot", f"s{number}"))
        story.pod(f"c{number}", {f"r{number}": "/data"}, "python3 /writers/ledger.py check /data/ledger")
    for number, least in enumerate(before):
        assert int(story.done(f"c{number}")) >= least


@pytest.mark.parametrize(("snapshot_class", "needed"), [("stillframe-freeze", False), (CLASS, True)],
                         ids=["frozen for the cut", "not frozen"])  # fmt: skip
def test_a_file_system_that_is_frozen_for_the_cut_needs_no_recovery(story: Story, snapshot_class: str, needed: bool) -> None:
    """Restored as a block device, so that no mount replays its journal before somebody looks."""
    story.claim("data", "128Mi")
    story.pod("writer", {"data": "/data"}, "python3 /writers/counter.py /data/log")
    wait_for_numbers(story, "writer")
    story.snapshot("monday", "data", snapshot_class)
    story.complete("monday")
    allowed = {"metadata": {"annotations": {"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"}}}
    story.cluster.change("VolumeSnapshotContent", story.content("monday")["metadata"]["name"], allowed)
    story.claim("restored", "128Mi", block=True, source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"restored": "/dev/raw"}, f"od -An -tx4 -j{INCOMPAT_OFFSET} -N4 /dev/raw")
    assert bool(int(story.done("reader"), 16) & INCOMPAT_RECOVER) is needed


def test_two_volumes_are_cut_at_one_instant(story: Story) -> None:
    """Whoever writes to one and then to the other finds them in that order in a group snapshot."""
    for name in ("first", "second"):
        story.claim(name, "256Mi", labels={"together": "yes"})
    story.pod("writer", {"first": "/first", "second": "/second"}, "python3 /writers/counter.py /first/log /second/log")
    wait_for_numbers(story, "writer")
    spec = {"volumeGroupSnapshotClassName": CLASS, "source": {"selector": {"matchLabels": {"together": "yes"}}}}
    story.make("VolumeGroupSnapshot", "both", {"spec": spec})
    story.wait("VolumeGroupSnapshot", "both", lambda found: (found.get("status") or {}).get("readyToUse"), 180)
    members = [found for found in story.cluster.every("VolumeSnapshot", story.namespace)
               if (found.get("status") or {}).get("volumeGroupSnapshotName") == "both"]  # fmt: skip
    assert len(members) == 2
    for member in members:
        of = member["spec"]["source"].get("persistentVolumeClaimName") or member["status"]["boundVolumeSnapshotContentName"]
        claim = of if of in ("first", "second") else claim_of(story, of)
        story.complete(member["metadata"]["name"])
        story.claim(f"{claim}-restored", source=("VolumeSnapshot", member["metadata"]["name"]))
    story.pod("reader", {"first-restored": "/1", "second-restored": "/2"}, "wc -l < /1/log; wc -l < /2/log")
    first, second = map(int, story.done("reader").split())
    assert first - second in (0, 1) and second > 0


def claim_of(story: Story, content: str) -> str:
    """The claim whose volume a VolumeSnapshotContent is of."""
    found = story.cluster.get("VolumeSnapshotContent", content)
    assert found is not None
    handle = found["spec"]["source"].get("volumeHandle") or found["status"]["volumeHandle"]
    return next(name for name in ("first", "second") if story.bound(name)["spec"]["csi"]["volumeHandle"] == handle)


def test_a_claim_is_cloned(story: Story) -> None:
    story.claim("data", "320Mi")
    story.pod("writer", {"data": "/data"}, "python3 /writers/counter.py /data/log")
    wait_for_numbers(story, "writer")
    before = story.newest("writer")
    story.claim("twin", "320Mi", source=("PersistentVolumeClaim", "data"))
    story.pod("reader", {"twin": "/data"}, "cat /data/log")
    story.bound("twin")
    after = story.newest("writer") + 1  # one may be in the file and not yet said
    check_numbers(story.done("reader"), before, after)


@pytest.mark.parametrize("storage_class", [CLASS, "stillframe-xfs"])
def test_a_snapshot_is_restored_into_a_larger_claim(story: Story, storage_class: str) -> None:
    story.claim("data", "320Mi", storage_class=storage_class)
    script = "echo kept > /data/file; sync; df -k --output=size /data | tail -1; sleep infinity"
    story.pod("writer", {"data": "/data"}, script)
    story.running("writer")
    before = int(story.wait_for_output("writer"))
    story.snapshot("monday", "data")
    story.complete("monday")
    story.claim("larger", "800Mi", storage_class=storage_class, source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"larger": "/data"}, "cat /data/file; df -k --output=size /data | tail -1")
    kept, size = story.done("reader").split()
    assert kept == "kept" and int(size) > 2 * before


def test_a_snapshot_goes_with_its_object_if_the_policy_is_delete(story: Story) -> None:
    story.claim("data")
    story.pod("pod", {"data": "/data"})
    story.running("pod")
    story.snapshot("short", "data")
    story.complete("short")
    content = story.content("short")
    story.delete("VolumeSnapshot", "short")
    story.cluster.wait_gone("VolumeSnapshotContent", content["metadata"]["name"])
    assert content["status"]["snapshotHandle"] not in handles(story)


def test_a_snapshot_that_is_retained_is_imported_again(story: Story) -> None:
    """Only the bucket knows it any more; a VolumeSnapshotContent made by hand brings it back."""
    story.claim("data")
    _, digest = story.filled("writer", "data", 1)
    story.snapshot("kept", "data", "stillframe-retain")
    story.complete("kept")
    content = story.content("kept")
    handle = content["status"]["snapshotHandle"]
    story.delete("VolumeSnapshot", "kept")
    story.cluster.delete("VolumeSnapshotContent", content["metadata"]["name"])
    story.cluster.wait_gone("VolumeSnapshotContent", content["metadata"]["name"])
    story.delete("Pod", "writer")
    story.delete("PersistentVolumeClaim", "data")
    assert handle in handles(story)
    import_snapshot(story, "imported", handle)
    story.complete("imported")
    story.claim("again", source=("VolumeSnapshot", "imported"))
    story.pod("reader", {"again": "/data"}, "md5sum /data/file")
    assert story.done("reader").strip() == digest


def handles(story: Story) -> str:
    """What the engines' command line lists of the repository, as JSON."""
    pod = story.cluster.pod_on("engine", story.cluster.nodes()[0])
    return story.cluster.run("stillframe", pod, "stillframe", "--output", "json", "snapshot", "list", container="engine")


def import_snapshot(story: Story, name: str, handle: str) -> None:
    """Ask for a snapshot that the repository has, by a VolumeSnapshotContent made by hand, and its VolumeSnapshot."""
    content = f"{story.namespace}-{name}"
    reference = {"name": name, "namespace": story.namespace}
    story.cluster.make("VolumeSnapshotContent", content, {"spec": {
        "deletionPolicy": "Delete", "driver": "csi.stillframe.io", "source": {"snapshotHandle": handle},
        "volumeSnapshotRef": reference, "volumeSnapshotClassName": CLASS,
    }})  # fmt: skip
    spec = {"source": {"volumeSnapshotContentName": content}, "volumeSnapshotClassName": CLASS}
    story.make("VolumeSnapshot", name, {"spec": spec})
