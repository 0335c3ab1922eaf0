"""The object store is slow, or away."""

from __future__ import annotations

import time

import pytest

from e2e.cluster import Story, until
from e2e.slow import SlowStore
from e2e.test_snapshots import other_node

pytestmark = pytest.mark.thorough


def test_a_snapshot_outlives_a_minute_without_the_store(story: Story, slow: SlowStore) -> None:
    for name in ("data", "other"):
        story.claim(name, "192Mi")
    _, digest = story.filled("writer", "data", 24, "python3 /writers/counter.py /data/log")
    story.pod("idle", {"other": "/data"})
    story.running("idle")
    slow.rate_bytes = 2 << 20
    story.snapshot("monday", "data", "stillframe-slow")
    story.cut("monday")
    story.cluster.machines.stop_store()
    try:
        away = time.monotonic()
        slow.rate_bytes = None
        story.snapshot("tuesday", "other")
        told = story.wait("VolumeSnapshot", "tuesday", lambda found: (found.get("status") or {}).get("error"))
        assert "main" in told["status"]["error"]["message"]
        story.snapshot("never", "other")
        story.wait("VolumeSnapshot", "never", lambda found: (found.get("status") or {}).get("error"))
        story.delete("VolumeSnapshot", "never")
        time.sleep(max(0.0, 60 - (time.monotonic() - away)))
        monday = story.get("VolumeSnapshot", "monday")
        assert monday is not None and not monday["status"].get("readyToUse") and not monday["status"].get("error")
        said = story.newest("writer")
        until(lambda: story.newest("writer") > said, 30, lambda: f"the writer stands still after {said}")
    finally:
        story.cluster.machines.start_store()
    story.complete("monday")
    story.complete("tuesday")
    story.claim("restored", "192Mi", source=("VolumeSnapshot", "monday"))
    story.pod("reader", {"restored": "/data"}, "md5sum /data/file")
    assert story.done("reader").strip() == digest


def test_a_restore_that_takes_over_a_minute(story: Story, slow: SlowStore) -> None:
    """On another node. The provisioner gives up its calls long before; the restore goes on, and the claim is told."""
    story.claim("data", "128Mi")
    node, digest = story.filled("writer", "data", 40)
    story.snapshot("monday", "data", "stillframe-slow")
    story.complete("monday")
    slow.rate_bytes = 600_000
    try:
        began = time.monotonic()
        story.claim("restored", "128Mi", source=("VolumeSnapshot", "monday"))
        story.pod("reader", {"restored": "/data"}, "md5sum /data/file", node=other_node(story, node))
        story.event("restored", "restoring: ", " left")
        story.bound("restored", 180)
        assert time.monotonic() - began > 60, "it was too fast for this story"
    finally:
        slow.rate_bytes = None
    story.event("restored", "restored: 128.0 MiB")
    assert story.done("reader").strip() == digest
