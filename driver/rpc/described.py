"""Snapshots as the engine and the repositories describe them, in CSI's words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf import timestamp_pb2

from csi import csi_pb2
from driver.core.errors import SnapshotFailed, StillframeError
from driver.rpc.names import Handle, group_handle, node_id

READY: Final = "committed"
IN_THE_MAKING: Final = "uploading"
DELETED: Final = "deleted"


def check_alive(found: dict[str, Any]) -> None:
    """Raises SnapshotFailed for a snapshot that is neither complete nor in the making, with the reason."""
    if found["state"] == DELETED:
        raise SnapshotFailed(f"snapshot {found['name']!r} was deleted", "take a new one, by another name")
    if found["state"] not in (READY, IN_THE_MAKING):
        reason = StillframeError.from_message(found["error"]) if found["error"] else None
        raise SnapshotFailed(
            f"snapshot {found['name']!r} {found['state']}: {reason.message if reason else 'no reason is known'}",
            (reason.hint if reason else "") or "take a new one",
        )


def source_of(found: dict[str, Any]) -> str:
    """The handle of the volume that was snapshotted."""
    return str(Handle(node_id(found["node"]), found["volume"]["id"]))


def created(found: dict[str, Any]) -> timestamp_pb2.Timestamp:
    """The moment of the cut."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(datetime.fromisoformat(found["created"]))
    return stamp


def snapshot_of(found: dict[str, Any]) -> csi_pb2.Snapshot:
    """The engine's or the repository's description as CSI's message."""
    return csi_pb2.Snapshot(
        size_bytes=found["size_bytes"],
        snapshot_id=found["handle"],
        source_volume_id=source_of(found),
        creation_time=created(found),
        ready_to_use=found["state"] == READY,
        group_snapshot_id=group_handle(found["repository"], found["group"]) if found["group"] else "",
    )


def group_of(members: Sequence[dict[str, Any]]) -> csi_pb2.VolumeGroupSnapshot:
    return csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=group_handle(members[0]["repository"], members[0]["group"]),
        snapshots=[snapshot_of(member) for member in members],
        creation_time=created(members[0]),
        ready_to_use=all(member["state"] == READY for member in members),
    )
