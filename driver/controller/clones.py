"""A clone on another node than its source's: through the default repository, as a snapshot that lives as long as that takes.

Each call does what is left to do, so a call that ran out of time is made again: snapshot, restore, delete the snapshot. An
upload that failed is begun anew, by another name if the repository holds its end. What a claim leaves behind, as it was
deleted or got its volume on the source's node, is `left_over`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import grpc

from csi import csi_pb2
from driver.controller.everywhere import Everywhere
from driver.controller.repositories import Summary
from driver.controller.snapshots import SETTLED, delete, tell
from driver.core.errors import Busy, FailedPrecondition, NodeUnavailable, SnapshotFailed
from driver.core.ids import is_id, snapshot_id
from driver.rpc.described import DELETED, READY
from driver.rpc.names import NAME_KEY, Handle, engine_name, parse_handle

_PREFIX: Final = "clone-"
_ABORTED: Final = "aborted"
_ENDED: Final = (_ABORTED, DELETED)
_KEPT: Final = timedelta(days=1)


def snapshot_name(volume: str, attempt: int) -> str:
    """What the snapshot is called through which the volume of that name is cloned. Pure."""
    return _PREFIX + snapshot_id(f"{volume} {attempt}" if attempt else volume)


def left_over(found: Iterable[Summary], now: datetime) -> list[str]:
    """Of a repository's snapshots, the ids of those that were uploaded for a clone over a day ago. Pure."""
    return [
        item["id"] for item in found
        if item["state"] in (READY, _ABORTED) and item["created"] and now - datetime.fromisoformat(item["created"]) > _KEPT
        and item["name"].startswith(_PREFIX) and is_id(item["name"].removeprefix(_PREFIX))
    ]  # fmt: skip


class Clones:
    """gRPC's threads."""

    def __init__(self, everywhere: Everywhere) -> None:
        self._everywhere = everywhere

    def create(
        self, node: str, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """The volume on `node`. Raises Busy until the source is uploaded, FailedPrecondition if its node cannot be asked,
        SnapshotFailed if the upload failed (the next call begins another), and what `node` answers."""
        snapshot = self._uploaded(node, request, context)
        asked = csi_pb2.CreateVolumeRequest()
        asked.CopyFrom(request)
        asked.volume_content_source.snapshot.snapshot_id = str(snapshot)
        made: csi_pb2.CreateVolumeResponse = self._everywhere.nodes.ask(node, "CreateVolume", asked, context)
        known = self._everywhere.repositories.within(context).show(snapshot.where, snapshot.id)
        if known is not None and known["state"] != DELETED:
            gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=str(snapshot))
            delete(self._everywhere, known, "DeleteSnapshot", gone, context)
        made.volume.content_source.CopyFrom(request.volume_content_source)
        return made

    def _uploaded(self, node: str, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext) -> Handle:
        """The snapshot of which the volume is made: the first that has not ended, or, if it has, the one of which the volume
        was made."""
        repositories, volume = self._everywhere.repositories.within(context), engine_name(request.name)
        where = repositories.named(None)
        ended: list[Handle] = []
        while True:
            name = snapshot_name(volume, len(ended))
            snapshot = Handle(where, snapshot_id(name))
            known = repositories.show(where, snapshot.id)
            if known is None or known["state"] not in _ENDED:
                break
            ended.append(snapshot)
        if ended:
            source = self._source_of(node, volume, context)
            for before in ended:
                if str(before) == source:
                    return before
        if known is None or known["state"] not in SETTLED:
            self._upload(name, snapshot, request, context)
        return snapshot

    def _source_of(self, node: str, volume: str, context: grpc.ServicerContext) -> str:
        """The handle of the snapshot of which the volume of that name on `node` is made, or was; empty if there is none."""
        answer = self._everywhere.nodes.ask(node, "ListVolumes", csi_pb2.ListVolumesRequest(), context)
        for entry in answer.entries:
            if entry.volume.volume_context.get(NAME_KEY) == volume:
                return str(entry.volume.content_source.snapshot.snapshot_id)
        return ""

    def _upload(self, name: str, snapshot: Handle, request: Any, context: grpc.ServicerContext) -> None:
        source = request.volume_content_source.volume.volume_id
        node = parse_handle("volume", source).where
        asked = csi_pb2.CreateSnapshotRequest(
            source_volume_id=source, name=name, parameters={"repository": snapshot.where}
        )  # fmt: skip
        try:
            answer = self._everywhere.nodes.ask(node, "CreateSnapshot", asked, context)
        except NodeUnavailable as error:  # it is the source's node: another one for the claim would not help
            raise FailedPrecondition(
                f"volume {source!r} cannot be uploaded, to be cloned on another node: {error.message}", error.hint
            ) from error
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INTERNAL:
                raise
            gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=str(snapshot))
            tell(self._everywhere, node, "DeleteSnapshot", gone, context)
            raise SnapshotFailed(
                f"the upload of volume {source!r}, to be cloned on another node, failed: {error.details()}",
                "nothing need be done: the next call begins another",
            ) from error
        if not answer.snapshot.ready_to_use:
            raise Busy(f"volume {source!r} is being uploaded, to be cloned on another node")
