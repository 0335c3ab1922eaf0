"""CSI Controller: snapshots. Mixin of `controller.Controller`; gRPC's threads.

CreateSnapshot answers after the cut with `ready_to_use` false, and true once the upload is committed. Kubernetes keeps a
VolumeSnapshot for ever that was refused with UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED, CANCELLED or DEADLINE_EXCEEDED before
its cut: so what hinders one is FAILED_PRECONDITION here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc

from csi import csi_pb2
from driver.core.errors import (
    AlreadyExists,
    DataCorrupt,
    EngineUnavailable,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfSpace,
    RepositoryUnavailable,
)
from driver.host import mountinfo
from driver.node.here import Here
from driver.rpc import parameters
from driver.rpc.deadlines import time_left
from driver.rpc.described import DELETED, IN_THE_MAKING, READY, check_alive, snapshot_of, source_of
from driver.rpc.names import NO_SNAPSHOT, engine_name, parse_handle
from driver.rpc.paging import page

BEFORE_THE_CUT = (EngineUnavailable, RepositoryUnavailable, OutOfSpace)


class SnapshotCalls:
    """Create, delete, list and look up."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def CreateSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        """The snapshot of that name, cut now if there is none. Raises FailedPrecondition for all that may pass before the
        cut, SnapshotFailed (INTERNAL) for one that failed after it: by that name it will never be."""
        name = engine_name(request.name)
        volume = self._here.parse(request.source_volume_id)
        given = parameters.of_snapshot(request.parameters)
        with self._here.operations.on(f"snapshot {name}"):
            found = self._create(name, volume, given, context)
        check_alive(found)
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot_of(found))

    def _create(
        self, name: str, volume: str, given: parameters.SnapshotParameters, context: grpc.ServicerContext
    ) -> dict[str, Any]:
        try:
            with file_systems(self._here, [volume], wanted=given.freeze) as fds:
                return self._here.engine.call(
                    "snapshot.create", fds, volume=volume, name=name, repository=given.repository,
                    on_buffer_full=given.on_buffer_full,
                )  # fmt: skip
        except AlreadyExists:
            return self._committed_before(name, volume, given, context)
        except BEFORE_THE_CUT as error:
            raise FailedPrecondition(error.message, error.hint) from error

    def _committed_before(
        self, name: str, volume: str, given: parameters.SnapshotParameters, context: grpc.ServicerContext
    ) -> dict[str, Any]:
        """The snapshot that this volume has in the repository, of which this node has lost its record. Raises
        AlreadyExists if it is another volume's."""
        try:
            found = self._here.engine.call(
                "snapshot.show", snapshot=name, repository=given.repository, seconds=time_left(context)
            )
        except NotFound:
            found = {"volume": None}
        if (found["volume"] or {}).get("id") != volume:
            raise AlreadyExists(f"snapshot {name!r} exists, of another volume or in another repository", "take another name")
        return found

    def DeleteSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Delete it; one in the making is ended for good. Nothing happens if it is gone. Raises InvalidArgument for a
        member of a group."""
        try:
            handle = str(parse_handle("snapshot", request.snapshot_id))
            with self._here.operations.on(f"snapshot {handle}"):
                self._check_alone(handle, context)
                self._here.engine.call("snapshot.delete", snapshot=handle, seconds=time_left(context))
        except NotFound:
            pass
        return csi_pb2.DeleteSnapshotResponse()

    def _check_alone(self, handle: str, context: grpc.ServicerContext) -> None:
        """Raises InvalidArgument for a member of a group that is not deleted, NotFound. Of what group a damaged one was,
        nobody knows."""
        try:
            found = self._here.engine.call("snapshot.show", snapshot=handle, seconds=time_left(context))
        except DataCorrupt:
            return
        if found["group"] and found["state"] != DELETED:
            raise InvalidArgument(
                f"snapshot {handle} belongs to group snapshot {found['group']!r}", "delete the group snapshot"
            )

    def ListSnapshots(  # noqa: N802
        self, request: csi_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListSnapshotsResponse:
        """Those that are complete or in the making, of all repositories."""
        listed = self._listed(request, context)
        found = [item for item in listed if item["state"] in (READY, IN_THE_MAKING) and item["volume"]]
        if request.source_volume_id:
            found = [item for item in found if source_of(item) == request.source_volume_id]
        found.sort(key=lambda item: str(item["handle"]))
        shown, token = page(found, lambda item: str(item["handle"]), request.max_entries, request.starting_token)
        entries = [csi_pb2.ListSnapshotsResponse.Entry(snapshot=snapshot_of(item)) for item in shown]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    def _listed(
        self, request: csi_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> list[dict[str, Any]]:
        if not request.snapshot_id:
            return list(everything(self._here, context))
        try:
            handle = parse_handle("snapshot", request.snapshot_id)
            return [self._here.engine.call("snapshot.show", snapshot=str(handle), seconds=time_left(context))]
        except NotFound:
            return []

    def GetSnapshot(  # noqa: N802
        self, request: csi_pb2.GetSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetSnapshotResponse:
        handle = parse_handle("snapshot", request.snapshot_id)
        found = self._here.engine.call("snapshot.show", snapshot=str(handle), seconds=time_left(context))
        if found["state"] == DELETED or not found["volume"]:
            raise NotFound(f"there is no snapshot {request.snapshot_id!r}", NO_SNAPSHOT)
        check_alive(found)
        return csi_pb2.GetSnapshotResponse(snapshot=snapshot_of(found))


@contextlib.contextmanager
def file_systems(here: Here, volumes: Sequence[str], *, wanted: bool) -> Iterator[list[int]]:
    """Descriptors of the file systems of those volumes that are mounted, if `wanted`: the engine holds them still over the
    cut. A volume that is not mounted, or is a raw block device, has none."""
    fds: list[int] = []
    try:
        for volume in volumes if wanted else ():
            device = here.engine.call("volume.show", name=volume)["device"]
            found = mountinfo.mounts_of(device) if device else []
            if found:
                fds.append(os.open(found[0].target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        yield fds
    except OSError as error:
        raise FailedPrecondition(f"the volume's file system cannot be frozen: {error}", "is it alive? see dmesg") from error
    finally:
        for fd in fds:
            os.close(fd)


def everything(here: Here, context: grpc.ServicerContext) -> Iterable[dict[str, Any]]:
    """The snapshots of all repositories that this node knows. Raises what a repository answers."""
    for repository in here.engine.call("engine.info")["repositories"]:
        found = here.engine.call("snapshot.list", repository=repository["name"], seconds=time_left(context))
        yield from found["snapshots"]
