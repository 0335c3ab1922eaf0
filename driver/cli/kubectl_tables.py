"""What `kubectl stillframe` shows of the API's objects: rows for people, and the same for scripts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from driver.controller.events import PROGRESS, UPLOADING
from driver.core.errors import StillframeError
from driver.core.sizes import format_size
from driver.rpc.names import DRIVER, TOPOLOGY_KEY, parse_handle

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A PersistentVolume of this driver. `pods` is None where pods may not be listed."""

    namespace: str
    claim: str
    volume: str
    node: str
    size: str
    storage_class: str
    state: str
    pods: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A VolumeSnapshot. `percent` is None unless it is known how far its upload is."""

    namespace: str
    name: str
    claim: str
    state: str
    percent: int | None
    size: str
    cut: str
    note: str

    @property
    def is_in_the_making(self) -> bool:
        return self.state in ("uploading", "pending")


def node_of(volume: Manifest) -> str:
    """The node of a PersistentVolume: by its topology, else by its handle."""
    required = ((volume["spec"].get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ()
    for term in required:
        for expression in term.get("matchExpressions") or ():
            if expression["key"] == TOPOLOGY_KEY and expression.get("values"):
                return str(expression["values"][0])
    try:
        return parse_handle("volume", volume["spec"]["csi"]["volumeHandle"]).where
    except StillframeError:
        return "-"


def users(pods: Iterable[Manifest]) -> dict[tuple[str, str], list[str]]:
    """By namespace and claim, the pods that use it and have not ended."""
    found: dict[tuple[str, str], list[str]] = {}
    for pod in pods:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        for volume in pod["spec"].get("volumes") or ():
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if "ephemeral" in volume:
                claim = f"{name}-{volume['name']}"
            if claim:
                found.setdefault((namespace, claim), []).append(name)
    return found


def volume_rows(
    volumes: Iterable[Manifest], pods: Iterable[Manifest] | None, namespace: str | None
) -> list[VolumeRow]:
    """Of the claims of a namespace, or of all (None), volumes without a claim among them."""
    using = users(pods) if pods is not None else None
    rows = []
    for item in volumes:
        if (item["spec"].get("csi") or {}).get("driver") != DRIVER:
            continue
        claim = item["spec"].get("claimRef") or {}
        place = claim.get("namespace", ""), claim.get("name", "")
        if namespace is not None and place[0] != namespace:
            continue
        used = tuple(sorted(using.get(place, []))) if using is not None else None
        state = str(item.get("status", {}).get("phase", "Unknown"))
        rows.append(VolumeRow(
            *place, item["metadata"]["name"], node_of(item), item["spec"].get("capacity", {}).get("storage", "-"),
            item["spec"].get("storageClassName", ""), "InUse" if used and state == "Bound" else state, used,
        ))  # fmt: skip
    return sorted(rows, key=lambda row: (row.namespace, row.claim, row.volume))


def progress_of(events: Iterable[Manifest]) -> dict[str, dict[str, int]]:
    """By the uid of a VolumeSnapshot, the figures of its newest event that says how far it is."""
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for event in events:
        about, told = event.get("involvedObject", {}), (event["metadata"].get("annotations") or {}).get(PROGRESS)
        if event.get("reason") != UPLOADING or about.get("kind") != "VolumeSnapshot" or not told:
            continue
        stamp = event.get("lastTimestamp") or ""
        if stamp >= found.get(about["uid"], ("", {}))[0]:
            found[about["uid"]] = stamp, json.loads(told)
    return {uid: figures for uid, (_, figures) in found.items()}


def snapshot_rows(
    snapshots: Iterable[Manifest], classes: Iterable[Manifest] | None, events: Iterable[Manifest]
) -> list[SnapshotRow]:
    """Those of our classes; of all classes, where these may not be listed (None)."""
    progress = progress_of(events)
    ours = None if classes is None else {item["metadata"]["name"] for item in classes if item["driver"] == DRIVER}
    rows = []
    for item in snapshots:
        named = item["spec"].get("volumeSnapshotClassName")
        if ours is not None and named is not None and named not in ours:
            continue
        rows.append(_snapshot(item, progress.get(item["metadata"]["uid"])))
    return sorted(rows, key=lambda row: (row.namespace, row.cut or "~", row.name))


def _snapshot(item: Manifest, progress: Mapping[str, int] | None) -> SnapshotRow:
    status, source = item.get("status") or {}, item["spec"].get("source", {})
    error = (status.get("error") or {}).get("message", "")
    percent, note = None, ""
    if status.get("readyToUse"):
        state = "ready"
    elif error:
        state, note = "error", " ".join(str(error).split())
    elif progress is not None:
        state, total = "uploading", max(1, progress["total_bytes"])
        percent = 100 * progress["done_bytes"] // total
        note = f"{format_size(max(0, total - progress['done_bytes']))} left"
    else:
        state = "uploading" if status.get("creationTime") else "pending"
    return SnapshotRow(
        item["metadata"]["namespace"], item["metadata"]["name"],
        source.get("persistentVolumeClaimName") or source.get("volumeSnapshotContentName") or "-", state, percent,
        str(status.get("restoreSize") or "-"), str(status.get("creationTime") or ""), note,
    )  # fmt: skip
