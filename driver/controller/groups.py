"""CSI GroupController for the cluster: the repositories first, then the one node whose volumes are cut. gRPC's threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver.controller.everywhere import Everywhere
from driver.controller.repositories import Summary
from driver.controller.snapshots import SETTLED, STALE, check_volume, delete, delete_damaged, known_of, without_the_node
from driver.core.errors import (
    Busy,
    DataCorrupt,
    FailedPrecondition,
    InvalidArgument,
    NodeSilent,
    NodeUnavailable,
    NotFound,
    SnapshotFailed,
    StillframeError,
)
from driver.core.ids import member_name, snapshot_id
from driver.rpc import logs, parameters
from driver.rpc.described import IN_THE_MAKING, check_alive, group_of
from driver.rpc.names import NO_SNAPSHOT, Handle, engine_name, group_handle, node_id, parse_handle

_Rpc = csi_pb2.GroupControllerServiceCapability.RPC


class GroupController(csi_pb2_grpc.GroupControllerServicer):
    """Create, delete and look up."""

    def __init__(self, everywhere: Everywhere) -> None:
        self._everywhere = everywhere

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
        """As CreateSnapshot. Raises InvalidArgument for volumes of several nodes."""
        name = engine_name(request.name)
        volumes = sorted({parse_handle("volume", handle) for handle in request.source_volume_ids}, key=lambda of: of.id)
        check_one_node(volumes)
        repository = self._everywhere.repositories.named(parameters.of_snapshot(request.parameters).repository)
        with self._everywhere.operations.on(f"group snapshot {name}"):
            members = self._members_made(name, repository, volumes, context)
            if members is None:
                try:
                    made: csi_pb2.CreateVolumeGroupSnapshotResponse = self._everywhere.nodes.ask(
                        volumes[0].where, "CreateVolumeGroupSnapshot", request, context
                    )
                    return made
                except NodeSilent as error:
                    raise Busy(error.message, error.hint) from error
                except NodeUnavailable as error:
                    members = self._given_up(name, repository, volumes, error, context)
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=group_of(members))

    def _known(
        self, name: str, repository: str, volumes: Sequence[Handle], context: grpc.ServicerContext
    ) -> list[Summary | None]:
        members = [snapshot_id(member_name(name, volume.id)) for volume in volumes]
        return known_of(self._everywhere, repository, members, context)

    def _members_made(
        self, name: str, repository: str, volumes: Sequence[Handle], context: grpc.ServicerContext
    ) -> list[Summary] | None:
        """All members, complete; None if the node has to be asked. Raises SnapshotFailed if one of them will never be."""
        members: list[Summary] = []
        for volume, known in zip(volumes, self._known(name, repository, volumes, context), strict=True):
            if known is None or known["state"] not in SETTLED:
                continue
            check_volume(known, volume)
            check_alive(known)
            members.append(known)
        if len(members) < len(volumes):
            return None
        listed = self._everywhere.repositories.within(context).list(repository)
        of_group = [item for item in listed if item["group"] == name]
        return members if len(of_group) == len(members) else None

    def _given_up(
        self, name: str, repository: str, volumes: Sequence[Handle], error: NodeUnavailable,
        context: grpc.ServicerContext,
    ) -> list[Summary]:
        """Ends the group if one of its sessions is lost. Raises FailedPrecondition, SnapshotFailed."""
        known = self._known(name, repository, volumes, context)
        failures: list[StillframeError] = []
        for item in sorted(known, key=lambda item: item is None or item["state"] != STALE):
            if item is None or item["state"] not in SETTLED:
                try:
                    without_the_node(self._everywhere, item, error, context)
                except (SnapshotFailed, FailedPrecondition) as failure:
                    failures.append(failure)
        if failures:
            raise failures[0]
        return [item for item in self._known(name, repository, volumes, context) if item is not None]

    def DeleteVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """Delete all members. Nothing happens to what is gone."""
        try:
            handle = parse_handle("group snapshot", request.group_snapshot_id)
        except NotFound:
            return csi_pb2.DeleteVolumeGroupSnapshotResponse()
        with self._everywhere.operations.on(f"group snapshot {handle}"):
            members = self._members(handle, context)
            damaged = self._check_members(handle, request.snapshot_ids, members, context)
            for member in members:
                delete(self._everywhere, member, "DeleteVolumeGroupSnapshot", request, context)
            for snapshot, error in damaged.items():
                delete_damaged(self._everywhere, snapshot, error, context)
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(  # noqa: N802
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        handle = parse_handle("group snapshot", request.group_snapshot_id)
        members = self._members(handle, context)
        if not members:
            raise NotFound(f"there is no group snapshot {request.group_snapshot_id!r}", NO_SNAPSHOT)
        for error in self._check_members(handle, request.snapshot_ids, members, context).values():
            raise error
        if any(member["state"] in (IN_THE_MAKING, STALE) for member in members):
            try:
                node = node_id(members[0]["node"])
                answer: csi_pb2.GetVolumeGroupSnapshotResponse = self._everywhere.nodes.ask(
                    node, "GetVolumeGroupSnapshot", request, context
                )
                return answer
            except (NodeUnavailable, NodeSilent) as error:
                logs.log().info("its node cannot be asked", error=error.message)
        for member in members:
            check_alive(member)
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=group_of(members))

    def _members(self, handle: Handle, context: grpc.ServicerContext) -> list[Summary]:
        return [
            item for item in self._everywhere.repositories.within(context).list(handle.where)
            if item["group"] and group_handle(handle.where, item["group"]) == str(handle)
        ]  # fmt: skip

    def _check_members(
        self, group: Handle, given: Sequence[str], members: Sequence[Summary], context: grpc.ServicerContext
    ) -> dict[Handle, DataCorrupt]:
        """Those of which nothing can be read: what group they are of, only who asks knows. Raises InvalidArgument for a
        snapshot that is there and belongs elsewhere."""
        damaged: dict[Handle, DataCorrupt] = {}
        ours = {member["handle"] for member in members}
        for text in given:
            if text in ours:
                continue
            try:
                handle = parse_handle("snapshot", text)
            except NotFound:
                continue
            try:
                found: Any = self._everywhere.repositories.within(context).show(handle.where, handle.id)
            except DataCorrupt as error:
                damaged[handle] = error
                continue
            if found is not None and found["state"] != "deleted":
                raise InvalidArgument(f"snapshot {text!r} is no member of group snapshot {str(group)!r}")
        return damaged


def check_one_node(volumes: Sequence[Handle]) -> None:
    """Raises InvalidArgument for no volumes, and for volumes of several nodes. Pure."""
    if not volumes:
        raise InvalidArgument("the source volume ids are missing")
    nodes = sorted({volume.where for volume in volumes})
    if len(nodes) > 1:
        raise InvalidArgument(
            f"the volumes of the group are on nodes {', '.join(map(repr, nodes))}",
            "a group is cut at one instant, which only volumes of one node can be: make a group for each node",
        )
