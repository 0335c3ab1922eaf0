"""What `kubectl stillframe` makes of the API's objects."""

from __future__ import annotations

import json
from typing import Any

from driver.cli.kubectl_tables import node_of, progress_of, snapshot_rows, volume_rows
from driver.rpc.names import DRIVER, TOPOLOGY_KEY

HANDLE = "node-a:5b1d3a52-5c1f-5d0e-9b7e-2f6c1f0a7e11"


def volume(name: str, claim: str | None, **spec: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "csi": {"driver": DRIVER, "volumeHandle": HANDLE}, "capacity": {"storage": "1Gi"}, "storageClassName": "s", **spec
    }  # fmt: skip
    if claim:
        given["claimRef"] = {"namespace": "shop", "name": claim}
    return {"metadata": {"name": name}, "spec": given, "status": {"phase": "Bound" if claim else "Available"}}


def pod(name: str, *volumes: dict[str, Any], phase: str = "Running") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"volumes": list(volumes)}, "status": {"phase": phase}}


def test_volumes_are_shown_with_who_uses_them() -> None:
    claimed = {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}
    ephemeral = {"name": "x", "ephemeral": {}}
    pods = [pod("b", claimed), pod("a", claimed), pod("old", claimed, phase="Failed"), pod("web", ephemeral)]
    found = [
        volume("pv-1", "data"), volume("pv-2", "web-x"), volume("pv-3", None), volume("pv-4", "idle"),
        volume("else", "x", csi={"driver": "other", "volumeHandle": "1"}), volume("nfs", "y", csi=None),
    ]  # fmt: skip
    rows = volume_rows(found, pods, None)
    assert [(row.volume, row.state, row.pods) for row in rows] == [
        ("pv-3", "Available", ()), ("pv-1", "InUse", ("a", "b")), ("pv-4", "Bound", ()), ("pv-2", "InUse", ("web",))
    ]  # fmt: skip
    assert [row.volume for row in volume_rows(found, None, "shop")] == ["pv-1", "pv-4", "pv-2"]
    assert volume_rows(found, None, "shop")[0].pods is None


def test_a_volume_s_node_is_its_topology_s_or_its_handle_s() -> None:
    required = {"nodeSelectorTerms": [{"matchExpressions": [{"key": TOPOLOGY_KEY, "operator": "In", "values": ["node-b"]}]}]}
    assert node_of(volume("pv", None)) == "node-a"
    assert node_of(volume("pv", None, nodeAffinity={"required": required})) == "node-b"
    assert node_of(volume("pv", None, csi={"driver": DRIVER, "volumeHandle": "?"})) == "-"


def snapshot(name: str, of: str = "stillframe", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": name, "uid": f"uid-{name}"},
        "spec": {"volumeSnapshotClassName": of, "source": {"persistentVolumeClaimName": "data"}}, "status": status,
    }  # fmt: skip


def event(name: str, done: int, stamp: str, reason: str = "SnapshotUploading") -> dict[str, Any]:
    figures = {"stage": "running", "done_bytes": done, "total_bytes": 1 << 30, "uploaded_bytes": 0}
    return {
        "reason": reason, "involvedObject": {"kind": "VolumeSnapshot", "uid": f"uid-{name}"}, "lastTimestamp": stamp,
        "metadata": {"annotations": {"stillframe.io/progress": json.dumps(figures)}},
    }  # fmt: skip


def test_snapshots_are_shown_with_how_far_they_are() -> None:
    classes = [{"metadata": {"name": "stillframe"}, "driver": DRIVER}, {"metadata": {"name": "else"}, "driver": "other"}]
    found = [
        snapshot("new"), snapshot("cut", creationTime="2026-01-01T00:00:00Z"), snapshot("half", creationTime="2026-01-02"),
        snapshot("done", readyToUse=True, restoreSize="1Gi", creationTime="2026-01-03"),
        snapshot("bad", error={"message": "rpc error:\n it failed"}), snapshot("foreign", "else"),
    ]  # fmt: skip
    told = [event("half", 1 << 29, "2026-01-02T01"), event("half", 1 << 28, "2026-01-02T00"), event("done", 5, "2026-01-03")]
    rows = {row.name: row for row in snapshot_rows(found, classes, told)}
    assert {name: (row.state, row.percent, row.note) for name, row in rows.items()} == {
        "new": ("pending", None, ""), "cut": ("uploading", None, ""), "half": ("uploading", 50, "512.0 MiB left"),
        "done": ("ready", None, ""), "bad": ("error", None, "rpc error: it failed"),
    }  # fmt: skip
    assert [row.name for row in rows.values() if row.is_in_the_making] == ["cut", "half", "new"]
    assert "foreign" in {row.name for row in snapshot_rows(found, None, ())}


def test_only_the_controller_s_events_of_progress_count() -> None:
    claimed = event("x", 1, "2026")
    claimed["involvedObject"]["kind"] = "PersistentVolumeClaim"
    bare = event("x", 1, "2026")
    bare["metadata"] = {}
    assert progress_of([event("x", 1, "2026", "SnapshotUploaded"), claimed, bare]) == {}
