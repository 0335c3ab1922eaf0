"""What every call of the controller needs: nodes, repositories, what is in hand here. gRPC's threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc

from csi import csi_pb2
from driver.controller.cluster import State
from driver.controller.forgotten import Forgotten
from driver.controller.nodes import Nodes
from driver.controller.repositories import Repositories
from driver.core.errors import NodeUnavailable, NotFound
from driver.rpc.names import parse_handle
from driver.rpc.operations import Operations
from driver.rpc.paging import start, token_after


@dataclass(frozen=True, slots=True)
class Everywhere:
    """The cluster, as far as CSI is concerned."""

    nodes: Nodes
    repositories: Repositories
    forgotten: Forgotten
    operations: Operations = field(default_factory=Operations)

    def is_gone(self, node: str) -> bool:
        """Whether a node has no Node object and was forgotten. Raises KubernetesUnavailable."""
        return self.nodes.cluster.find(node).state is State.ABSENT and self.forgotten.has(node)

    def ask_owner(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """The answer of the node that has the volume `request.volume_id`. Raises as `Nodes.ask`, and NotFound for a volume
        that is gone with its node."""
        handle = parse_handle("volume", request.volume_id)
        try:
            return self.nodes.ask(handle.where, method, request, context)
        except NodeUnavailable:
            if self.is_gone(handle.where):
                raise NotFound(f"volume {request.volume_id!r} is gone with node {handle.where!r}") from None
            raise

    def merged(self, method: str, request: Any, context: grpc.ServicerContext) -> tuple[list[Any], str]:
        """A page of what all nodes list, node by node: entries, and the next page's token.

        The token names node and entry after which the next page begins, so it holds when the controller is started anew, and
        when nodes and volumes come and go. A node that cannot be asked is an error: a listing without it would say that its
        volumes are gone.
        """
        after = start(request.max_entries, request.starting_token)
        last = parse_handle("volume", after) if after is not None else None
        entries: list[Any] = []
        for node in self.nodes.cluster.with_plugins():
            if last is not None and node < last.where:
                continue
            left = request.max_entries - len(entries)
            asked = type(request)(max_entries=max(left, 1) if request.max_entries else 0)
            if last is not None and node == last.where:
                asked.starting_token = token_after(last.id)
            answer = self.nodes.ask(node, method, asked, context)
            if request.max_entries and not left:
                if answer.entries:
                    return entries, _token(entries[-1])
                continue
            entries += answer.entries
            if answer.next_token:
                return entries, _token(entries[-1])
        return entries, ""


def _token(entry: Any) -> str:
    """After an entry of ListVolumes, or of ControllerListVolumeHealth."""
    return token_after(entry.volume.volume_id if isinstance(entry, csi_pb2.ListVolumesResponse.Entry) else entry.volume_id)
