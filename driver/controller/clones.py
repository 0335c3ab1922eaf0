"""A clone on another node than its source's: through the default repository, as a snapshot that lives as long as that takes.

Each call does what is left to do, so a call that ran out of time is made again: snapshot, restore, delete the snapshot.
"""

from __future__ import annotations

from typing import Any

import grpc

from csi import csi_pb2
from driver.controller.everywhere import Everywhere
from driver.controller.snapshots import SETTLED, delete
from driver.core.errors import Busy
from driver.core.ids import snapshot_id
from driver.rpc.described import check_alive
from driver.rpc.names import engine_name


class Clones:
    """gRPC's threads."""

    def __init__(self, everywhere: Everywhere) -> None:
        self._everywhere = everywhere

    def create(
        self, node: str, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """The volume on `node`. Raises Busy until the source is uploaded, and what either node answers."""
        name = f"clone-{snapshot_id(engine_name(request.name))}"
        repositories = self._everywhere.repositories
        where = repositories.named(None)
        known = repositories.show(where, snapshot_id(name))
        if known is None or known["state"] not in SETTLED:
            self._upload(name, where, request, context)
            known = repositories.show(where, snapshot_id(name)) or {}
        elif known["state"] != "deleted":
            check_alive(known)
        asked = csi_pb2.CreateVolumeRequest()
        asked.CopyFrom(request)
        asked.volume_content_source.snapshot.snapshot_id = known["handle"]
        made: csi_pb2.CreateVolumeResponse = self._everywhere.nodes.ask(node, "CreateVolume", asked, context)
        if known["state"] != "deleted":
            gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=known["handle"])
            delete(self._everywhere, known, "DeleteSnapshot", gone, context)
        made.volume.content_source.CopyFrom(request.volume_content_source)
        return made

    def _upload(self, name: str, where: str, request: Any, context: grpc.ServicerContext) -> None:
        source = request.volume_content_source.volume.volume_id
        asked = csi_pb2.CreateSnapshotRequest(source_volume_id=source, name=name, parameters={"repository": where})
        answer = self._everywhere.nodes.ask(source.rpartition(":")[0], "CreateSnapshot", asked, context)
        if not answer.snapshot.ready_to_use:
            raise Busy(f"volume {source!r} is being uploaded, to be cloned on another node")
