"""CSI Controller for the cluster: snapshots. What a repository says comes first; a node is asked for what is in the making.
Mixin of `controller.Controller`; gRPC's threads.

A node that cannot be asked makes no snapshot undeletable. Its session is ended by the mark `aborted`, which no commit
passes: at once when the snapshot is deleted, else only after nothing was heard of the session for five minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc

from csi import csi_pb2
from driver.controller.everywhere import Everywhere
from driver.controller.repositories import Summary
from driver.core.errors import (
    AccessDenied,
    AlreadyExists,
    Busy,
    DataCorrupt,
    FailedPrecondition,
    InvalidArgument,
    NodeSilent,
    NodeUnavailable,
    NotFound,
    RepositoryUnavailable,
    StillframeError,
    Unsupported,
)
from driver.core.ids import snapshot_id
from driver.rpc import logs, parameters
from driver.rpc.deadlines import time_left
from driver.rpc.described import DELETED, IN_THE_MAKING, READY, check_alive, snapshot_of, source_of
from driver.rpc.names import NO_SNAPSHOT, Handle, engine_name, node_id, parse_handle
from driver.rpc.paging import page

STALE: Final = "failed"
"""What a repository says of a session of which nothing was heard for five minutes."""
SETTLED: Final = (READY, "aborted", "deleted")
_TELL_SECONDS: Final = 5.0


class SnapshotCalls:
    """Create, delete, list and look up."""

    _everywhere: Everywhere

    def CreateSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        """Raises FailedPrecondition if the node cannot be asked, SnapshotFailed for one that will never be, Busy where the
        node was asked and has not answered."""
        name = engine_name(request.name)
        volume = parse_handle("volume", request.source_volume_id)
        repository = self._everywhere.repositories.named(parameters.of_snapshot(request.parameters).repository)
        with self._everywhere.operations.on(f"snapshot {name}"):
            (known,) = known_of(self._everywhere, repository, [snapshot_id(name)], context)
            if known is None or known["state"] not in SETTLED:
                try:
                    made: csi_pb2.CreateSnapshotResponse = self._everywhere.nodes.ask(
                        volume.where, "CreateSnapshot", request, context
                    )
                    return made
                except NodeSilent as error:
                    raise Busy(error.message, error.hint) from error
                except NodeUnavailable as error:
                    known = without_the_node(self._everywhere, known, error, context)
        check_volume(known, volume)
        check_alive(known)
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot_of(known))

    def DeleteSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Nothing happens if it is gone. Raises InvalidArgument for a member of a group that is not deleted."""
        try:
            handle = parse_handle("snapshot", request.snapshot_id)
        except NotFound:
            return csi_pb2.DeleteSnapshotResponse()
        with self._everywhere.operations.on(f"snapshot {handle}"):
            try:
                known = self._everywhere.repositories.within(context).show(handle.where, handle.id)
            except DataCorrupt as error:
                delete_damaged(self._everywhere, handle, error, context)
                return csi_pb2.DeleteSnapshotResponse()
            if known is not None and known["group"] and known["state"] != DELETED:
                raise InvalidArgument(
                    f"snapshot {handle} belongs to group snapshot {known['group']!r}", "delete the group snapshot"
                )
            if known is not None:
                delete(self._everywhere, known, "DeleteSnapshot", request, context)
        return csi_pb2.DeleteSnapshotResponse()

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
        entries = [csi_pb2.ListSnapshotsResponse.Entry(snapshot=self._described(item, context)) for item in shown]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    def _listed(self, request: csi_pb2.ListSnapshotsRequest, context: grpc.ServicerContext) -> list[Summary]:
        if not request.snapshot_id:
            return self._everywhere.repositories.within(context).all()
        try:
            handle = parse_handle("snapshot", request.snapshot_id)
        except NotFound:
            return []
        found = self._everywhere.repositories.within(context).show(handle.where, handle.id)
        return [found] if found is not None else []

    def GetSnapshot(  # noqa: N802
        self, request: csi_pb2.GetSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetSnapshotResponse:
        handle = parse_handle("snapshot", request.snapshot_id)
        found = self._everywhere.repositories.within(context).show(handle.where, handle.id)
        if found is None or found["state"] == DELETED or not found["volume"]:
            raise NotFound(f"there is no snapshot {request.snapshot_id!r}", NO_SNAPSHOT)
        return csi_pb2.GetSnapshotResponse(snapshot=self._described(found, context))

    def _described(self, found: Summary, context: grpc.ServicerContext) -> csi_pb2.Snapshot:
        """In CSI's words; one in the making as its node knows it, if that can be asked. Raises SnapshotFailed."""
        if found["state"] in (IN_THE_MAKING, STALE):
            try:
                request = csi_pb2.GetSnapshotRequest(snapshot_id=found["handle"])
                answer = self._everywhere.nodes.ask(node_id(found["node"]), "GetSnapshot", request, context)
                return answer.snapshot  # type: ignore[no-any-return]
            except (NodeUnavailable, NodeSilent) as error:
                logs.log().info("its node cannot be asked", snapshot=found["handle"], error=error.message)
        check_alive(found)
        return snapshot_of(found)


def known_of(
    everywhere: Everywhere, repository: str, snapshots: Sequence[str], context: grpc.ServicerContext
) -> list[Summary | None]:
    """What the repository says of each; None of those that it does not know, and of all if it cannot be asked: then the node
    decides. Raises FailedPrecondition if it has not answered within the time of the call."""
    repositories = everywhere.repositories.within(context)
    try:
        return [repositories.show(repository, snapshot) for snapshot in snapshots]
    except (RepositoryUnavailable, AccessDenied, FailedPrecondition) as error:
        logs.log().warning("the repository cannot be asked", repository=repository, error=error.message)
        if time_left(context) <= 0:
            raise FailedPrecondition(error.message, error.hint) from error
        return [None] * len(snapshots)


def check_volume(known: Summary, volume: Handle) -> None:
    """Raises AlreadyExists if a snapshot is of another volume."""
    if known["volume"] and source_of(known) != str(volume):
        raise AlreadyExists(f"snapshot {known['name']!r} exists, of volume {source_of(known)}", "take another name")


def without_the_node(
    everywhere: Everywhere, known: Summary | None, error: NodeUnavailable, context: grpc.ServicerContext
) -> Summary:
    """What becomes of a snapshot whose node cannot be asked: one of which nothing is heard any more is ended.

    Raises FailedPrecondition where it was not begun, or may still go on; SnapshotFailed once it is ended.
    """
    if known is None:
        raise FailedPrecondition(error.message, error.hint) from error
    if known["state"] != STALE:
        raise FailedPrecondition(
            f"{error.message}; the upload of snapshot {known['name']!r} may go on there",
            f"{error.hint}; it is given up when nothing is heard of it for five minutes",
        ) from error
    reason = StillframeError.from_message(known["error"]).message
    repositories = everywhere.repositories.within(context)
    return repositories.fence(known["repository"], known["id"], f"{reason}; {error.message}")


def delete(
    everywhere: Everywhere, known: Summary, method: str, request: Any, context: grpc.ServicerContext
) -> None:
    """Delete a snapshot through its repository, then have its node end the session by `method`, if it can be told.

    Where the store has no conditional PUTs, the node decides what is in the making. Raises Unsupported if it cannot.
    """
    node = node_id(known["node"]) if known["node"] else None
    in_the_making = known["state"] in (IN_THE_MAKING, STALE)
    only_writer = in_the_making and node is not None and everywhere.is_gone(node)
    try:
        everywhere.repositories.within(context).delete(known["repository"], known["id"], only_writer=only_writer)
    except Unsupported:
        if node is None:
            raise
        everywhere.nodes.ask(node, method, request, context)
        return
    if node is not None:
        tell(everywhere, node, method, request, context)


def delete_damaged(
    everywhere: Everywhere, snapshot: Handle, error: DataCorrupt, context: grpc.ServicerContext
) -> None:
    """Delete a snapshot of which nothing can be read: as long as it is there, nothing is collected."""
    logs.log().warning("a damaged snapshot is deleted", snapshot=str(snapshot), error=error.message)
    everywhere.repositories.within(context).delete(snapshot.where, snapshot.id, only_writer=False)


def tell(everywhere: Everywhere, node: str, method: str, request: Any, context: grpc.ServicerContext) -> None:
    """Ask a node for something that it is not needed for."""
    try:
        everywhere.nodes.call(node, method, request, min(_TELL_SECONDS, time_left(context)))
    except (NodeUnavailable, NodeSilent) as error:
        logs.log().info("the node was not told", node=node, error=error.message)
    except grpc.RpcError as error:
        logs.log().info("the node did not do as told", node=node, error=str(error.details()))
