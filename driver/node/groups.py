"""CSI GroupController: snapshots of several volumes of this node, cut at one instant. gRPC's threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver.core.errors import DataCorrupt, FailedPrecondition, InvalidArgument, NotFound
from driver.node.here import Here
from driver.node.snapshots import BEFORE_THE_CUT, file_systems
from driver.rpc import parameters
from driver.rpc.deadlines import time_left
from driver.rpc.described import DELETED, check_alive, group_of
from driver.rpc.names import NO_SNAPSHOT, engine_name, group_handle, parse_handle

_Rpc = csi_pb2.GroupControllerServiceCapability.RPC


class GroupController(csi_pb2_grpc.GroupControllerServicer):
    """Create, delete and look up."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def GroupControllerGetCapabilities(  # noqa: N802
        self, request: csi_pb2.GroupControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        rpc = _Rpc(type=_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        return csi_pb2.GroupControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.GroupControllerServiceCapability(rpc=rpc)]
        )

    def CreateVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """The group of that name, cut now if there is none. Raises InvalidArgument for volumes of several nodes."""
        name = engine_name(request.name)
        if not request.source_volume_ids:
            raise InvalidArgument("the source volume ids are missing")
        volumes = [self._volume(handle) for handle in request.source_volume_ids]
        given = parameters.of_snapshot(request.parameters)
        with self._here.operations.on(f"group snapshot {name}"):
            try:
                with file_systems(self._here, volumes, wanted=given.freeze) as fds:
                    members = self._here.engine.call(
                        "snapshot.create_group", fds, group=name, volumes=volumes, repository=given.repository,
                        on_buffer_full=given.on_buffer_full,
                    )["snapshots"]  # fmt: skip
            except BEFORE_THE_CUT as error:
                raise FailedPrecondition(error.message, error.hint) from error
        for member in members:
            check_alive(member)
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=group_of(members))

    def _volume(self, handle: str) -> str:
        parsed = parse_handle("volume", handle)
        if parsed.where != self._here.node:
            raise InvalidArgument(
                f"volume {handle!r} is on node {parsed.where!r}, others of the group are on {self._here.node!r}",
                "a group is cut at one instant, which only volumes of one node can be: make a group for each node",
            )
        return parsed.id

    def DeleteVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """Delete all members. Nothing happens to what is gone."""
        if not request.group_snapshot_id:
            raise InvalidArgument("the group snapshot id is missing")
        with self._here.operations.on(f"group snapshot {request.group_snapshot_id}"):
            members = {member["handle"]: member for member in self._members(request.group_snapshot_id, context)}
            damaged = self._check_members(request.group_snapshot_id, request.snapshot_ids, members, context)
            for handle in (*members, *damaged):
                try:
                    self._here.engine.call("snapshot.delete", snapshot=handle, seconds=time_left(context))
                except NotFound:
                    continue
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        if not request.group_snapshot_id:
            raise InvalidArgument("the group snapshot id is missing")
        members = {member["handle"]: member for member in self._members(request.group_snapshot_id, context)}
        if not members:
            raise NotFound(f"there is no group snapshot {request.group_snapshot_id!r}", NO_SNAPSHOT)
        for error in self._check_members(request.group_snapshot_id, request.snapshot_ids, members, context).values():
            raise error
        for member in members.values():
            check_alive(member)
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=group_of(list(members.values())))

    def _members(self, handle: str, context: grpc.ServicerContext) -> list[dict[str, Any]]:
        """What belongs to the group, by this node's records and by the repository that the handle names."""
        try:
            repository = parse_handle("group snapshot", handle).where
            found = self._here.engine.call("snapshot.list", repository=repository, seconds=time_left(context))["snapshots"]
        except NotFound:
            return []
        return [
            item for item in found
            if item["group"] and item["state"] != DELETED and group_handle(item["repository"], item["group"]) == handle
        ]  # fmt: skip

    def _check_members(
        self, group: str, given: Sequence[str], members: dict[str, Any], context: grpc.ServicerContext
    ) -> dict[str, DataCorrupt]:
        """Those of which nothing can be read: what group they are of, only who asks knows. Raises InvalidArgument for a
        snapshot that is there and belongs elsewhere."""
        damaged: dict[str, DataCorrupt] = {}
        for handle in given:
            if handle in members:
                continue
            try:
                parsed = str(parse_handle("snapshot", handle))
                found = self._here.engine.call("snapshot.show", snapshot=parsed, seconds=time_left(context))
            except NotFound:
                continue
            except DataCorrupt as error:
                damaged[handle] = error
                continue
            if found["state"] == DELETED:
                continue
            raise InvalidArgument(f"snapshot {handle!r} is no member of group snapshot {group!r}")
        return damaged
