"""What is asked for cannot be: an event or a status names the object and what to do about it."""

from __future__ import annotations

import time

import pytest

from e2e.cluster import CLASS, DRIVER, SYSTEM, Story
from e2e.test_snapshots import import_snapshot

NOWHERE = "00000000-0000-5000-8000-000000000000"


def failure(story: Story, snapshot: str) -> str:
    """What the VolumeSnapshot's status says went wrong."""
    told = story.wait("VolumeSnapshot", snapshot, lambda found: (found.get("status") or {}).get("error"))
    return str(told["status"]["error"]["message"])


def calls_for(story: Story, name: str) -> int:
    """How often the controllers were called for what Kubernetes names so."""
    pods = [pod["metadata"]["name"] for pod in story.cluster.pods_of("controller")]
    lines = [line for pod in pods for line in story.cluster.log(SYSTEM, pod, "controller").splitlines()]
    return sum(1 for line in lines if f'"name": "{name}"' in line and '"event": "call"' in line)


def test_a_storage_class_with_a_key_that_there_is_not(story: Story) -> None:
    name = story.own("StorageClass", "colourful", {
        "provisioner": DRIVER, "parameters": {"colour": "red"}, "volumeBindingMode": "WaitForFirstConsumer",
    })  # fmt: skip
    story.claim("data", storage_class=name)
    story.pod("pod", {"data": "/data"})
    assert "provisioning" in story.event("data", "'colour'", "known ones")


@pytest.mark.thorough
def test_who_is_refused_does_not_ask_without_end(story: Story) -> None:
    """Twelve calls a minute for each object, at most."""
    story.claim("data", "64Mi")
    story.pod("pod", {"data": "/data"})
    story.running("pod")
    parameters = {"colour": "red"}
    snapshot_class = {"driver": DRIVER, "deletionPolicy": "Delete", "parameters": parameters}
    storage_class = {"provisioner": DRIVER, "parameters": parameters, "volumeBindingMode": "WaitForFirstConsumer"}
    story.snapshot("monday", "data", story.own("VolumeSnapshotClass", "odd", snapshot_class))
    story.claim("other", storage_class=story.own("StorageClass", "odd", storage_class))
    story.pod("waits", {"other": "/data"})
    failure(story, "monday")
    story.event("other", "'colour'")
    time.sleep(60)
    for kind, name, prefix in (("VolumeSnapshot", "monday", "snapshot"), ("PersistentVolumeClaim", "other", "pvc")):
        found = story.get(kind, name)
        assert found is not None
        assert 0 < calls_for(story, f"{prefix}-{found['metadata']['uid']}") <= 12


@pytest.mark.parametrize(("parameters", "words"), [
    ({"colour": "red"}, ("'colour'", "known ones: freeze, onBufferFull, repository")),
    ({"repository": "elsewhere"}, ("'elsewhere'", "locked, main, slow")),
    ({"freeze": "sometimes"}, ("'sometimes'", "true or false")),
], ids=["an unknown key", "a repository that is not in the values", "a wrong value"])  # fmt: skip
def test_a_snapshot_class_that_asks_for_what_there_is_not(
    story: Story, parameters: dict[str, str], words: tuple[str, ...]
) -> None:
    story.claim("data", "64Mi")
    story.pod("pod", {"data": "/data"})
    story.running("pod")
    name = story.own("VolumeSnapshotClass", "odd", {"driver": DRIVER, "deletionPolicy": "Delete", "parameters": parameters})
    story.snapshot("monday", "data", name)
    message = failure(story, "monday")
    assert all(word in message for word in words), message
    story.delete("VolumeSnapshot", "monday")


def test_wrong_credentials(story: Story) -> None:
    story.claim("data", "64Mi")
    story.pod("pod", {"data": "/data"})
    story.running("pod")
    story.snapshot("monday", "data", "stillframe-locked")
    message = failure(story, "monday")
    assert "'locked'" in message and "credentials" in message, message
    story.delete("VolumeSnapshot", "monday")


@pytest.mark.parametrize(("handle", "words"), [
    (f"elsewhere:{NOWHERE}", ("elsewhere", "locked, main, slow")),
    (f"main:{NOWHERE}", (f"can not find snapshot for snapshotID main:{NOWHERE}",)),
    ("nonsense", ("can not find snapshot for snapshotID nonsense",)),
], ids=["of another repository", "of no snapshot", "of another driver"])  # fmt: skip
def test_a_handle(story: Story, handle: str, words: tuple[str, ...]) -> None:
    """Of a repository that there is, the snapshotter lists the snapshot; that nothing is found it says in its own words, of
    which docs/troubleshooting.md tells what to do."""
    import_snapshot(story, "imported", handle)
    message = failure(story, "imported")
    assert all(word in message for word in words), message
    story.delete("VolumeSnapshot", "imported")


def test_a_claim_from_a_snapshot_that_is_gone_from_the_repository(story: Story) -> None:
    story.claim("data", "64Mi")
    story.pod("pod", {"data": "/data"})
    story.running("pod")
    story.snapshot("monday", "data")
    story.complete("monday")
    handle = story.content("monday")["status"]["snapshotHandle"]
    engine = story.cluster.pod_on("engine", story.cluster.nodes()[0])
    story.cluster.run("stillframe", engine, "stillframe", "snapshot", "delete", handle, container="engine")
    story.claim("restored", "64Mi", source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"restored": "/data"})
    story.event("restored", handle, "was deleted", "restore another")


def test_a_claim_that_is_smaller_than_its_snapshot(story: Story) -> None:
    story.claim("data", "128Mi")
    story.pod("pod", {"data": "/data"})
    story.running("pod")
    story.snapshot("monday", "data")
    story.complete("monday")
    story.claim("smaller", "64Mi", source=("VolumeSnapshot", "monday"), storage_class=CLASS)
    story.pod("reader", {"smaller": "/data"})
    story.event("smaller", "monday", str(64 << 20), str(128 << 20))
