"""CSI Controller for the cluster: volumes. Each call goes to the node that has the volume, or that the topology asks for.
Mixin of `controller.Controller`; gRPC's threads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf import wrappers_pb2

from csi import csi_pb2
from driver.controller.clones import Clones
from driver.controller.cluster import State
from driver.controller.everywhere import Everywhere
from driver.controller.patience import Patience
from driver.core.errors import NodeUnavailable, NotFound, OutOfSpace
from driver.rpc import capabilities
from driver.rpc.errors import text_of
from driver.rpc.names import NAME_KEY, TOPOLOGY_KEY, engine_name, parse_handle

NO_NODE = "no node has a node plugin that is ready"
_MAY_PASS: Final = (State.READY, State.NO_PLUGIN)
"""A node's states in which a plugin is away that is being replaced."""
_TOLD: Final = 3
"""Nodes whose reasons an answer has."""
NO_NODE_HINT = "look at the node plugin's pods: kubectl get pods -o wide"


def wanted_nodes(requirement: csi_pb2.TopologyRequirement) -> list[str]:
    """The nodes that a topology names, the preferred ones first. Pure."""
    named = [topology.segments.get(TOPOLOGY_KEY, "") for topology in (*requirement.preferred, *requirement.requisite)]
    return list(dict.fromkeys(node for node in named if node))


def no_room(problems: Sequence[str]) -> OutOfSpace:
    """The error for a volume that no node takes; `problems` are the nodes', with what to do. Pure."""
    if not problems:
        return OutOfSpace(NO_NODE, NO_NODE_HINT)
    more = f"; and {len(problems) - _TOLD} nodes more" if len(problems) > _TOLD else ""
    return OutOfSpace("; ".join(problems[:_TOLD]) + more)


class VolumeCalls:
    """Create, delete, list, look up, check and grow."""

    def __init__(self, everywhere: Everywhere, patience: Patience | None = None) -> None:
        self._everywhere = everywhere
        self._nodes = everywhere.nodes
        self._clones = Clones(everywhere)
        self._patience = patience or Patience()

    def CreateVolume(  # noqa: N802
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """Made on the first of the wanted nodes that takes it. Raises OutOfSpace if the node is NotReady or gone, or for a
        minute without its plugin: the claim is scheduled again. What was begun on a node that the claim has left is removed
        by `strays`. Raises NodeUnavailable within that minute."""
        name = engine_name(request.name)
        capabilities.check_all(request.volume_capabilities)
        nodes = wanted_nodes(request.accessibility_requirements)
        with self._everywhere.operations.on(f"volume {name}"):
            if len(nodes) != 1:
                nodes = self._ordered(nodes, name, request, context)
            problems: list[str] = []
            passing: NodeUnavailable | None = None
            for node in nodes:
                try:
                    made = self._create(node, request, context)
                except NodeUnavailable as error:
                    problems.append(text_of(error))
                    if self._nodes.cluster.find(node).state in _MAY_PASS:
                        passing = error
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    problems.append(f"node {node!r}: {error.details()}")
                else:
                    self._patience.end(name)
                    return made
            if passing is not None and not self._patience.is_over(name):
                raise passing
            self._patience.end(name)
            raise no_room(problems)

    def _create(
        self, node: str, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        asked = csi_pb2.CreateVolumeRequest()
        asked.CopyFrom(request)
        here = csi_pb2.Topology(segments={TOPOLOGY_KEY: node})
        asked.accessibility_requirements.CopyFrom(csi_pb2.TopologyRequirement(requisite=[here], preferred=[here]))
        source = request.volume_content_source.volume.volume_id
        if source and parse_handle("volume", source).where != node:
            return self._clones.create(node, asked, context)
        made: csi_pb2.CreateVolumeResponse = self._nodes.ask(node, "CreateVolume", asked, context)
        return made

    def _ordered(
        self, wanted: Sequence[str], name: str, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> list[str]:
        """Where several nodes may have the volume: the one that has it already, else the one of its source, else as wanted,
        else by what is free."""
        nodes = list(wanted) or self._nodes.ready()
        listed = self._nodes.ask_all(nodes, "ListVolumes", csi_pb2.ListVolumesRequest(), context=context)
        for node, answer in listed.items():
            if any(entry.volume.volume_context.get(NAME_KEY) == name for entry in answer.entries):
                return [node]
        source = request.volume_content_source.volume.volume_id
        if source:
            home = parse_handle("volume", source).where
            if not wanted or home in wanted:
                return [home]
        if wanted:
            return nodes
        found = self._nodes.ask_all(list(listed), "GetCapacity", csi_pb2.GetCapacityRequest(), context=context)
        free = {node: answer.available_capacity for node, answer in found.items()}
        return sorted(nodes, key=lambda node: (-free.get(node, 0), node))

    def DeleteVolume(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        """Nothing happens if it is gone, or gone with a node that was forgotten."""
        with contextlib.suppress(NotFound):
            self._everywhere.ask_owner("DeleteVolume", request, context)
        return csi_pb2.DeleteVolumeResponse()

    def ListVolumes(  # noqa: N802
        self, request: csi_pb2.ListVolumesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListVolumesResponse:
        entries, token = self._everywhere.merged("ListVolumes", request, context)
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    def ControllerListVolumeHealth(  # noqa: N802
        self, request: csi_pb2.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerListVolumeHealthResponse:
        entries, token = self._everywhere.merged("ControllerListVolumeHealth", request, context)
        return csi_pb2.ControllerListVolumeHealthResponse(entries=entries, next_token=token)

    def GetCapacity(  # noqa: N802
        self, request: csi_pb2.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        """Of the node that the topology names: nothing once its plugin has been away for a minute, so that no claim is
        scheduled there. Without a topology the sum of those that answer, and the largest volume."""
        node = request.accessible_topology.segments.get(TOPOLOGY_KEY)
        if node:
            return self._capacity_of(node, request, context)
        found = self._nodes.ask_all(self._nodes.ready(), "GetCapacity", request, context=context).values()
        if not found:
            return csi_pb2.GetCapacityResponse()
        return csi_pb2.GetCapacityResponse(
            available_capacity=sum(item.available_capacity for item in found),
            maximum_volume_size=wrappers_pb2.Int64Value(value=max(item.maximum_volume_size.value for item in found)),
            minimum_volume_size=wrappers_pb2.Int64Value(value=max(item.minimum_volume_size.value for item in found)),
        )

    def _capacity_of(
        self, node: str, request: csi_pb2.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        waiting = f"for the capacity of {node}"  # no volume's name has spaces
        try:
            answer: csi_pb2.GetCapacityResponse = self._nodes.ask(node, "GetCapacity", request, context)
        except NodeUnavailable:
            if self._nodes.cluster.find(node).state in _MAY_PASS and self._patience.is_over(waiting):
                return csi_pb2.GetCapacityResponse()
            raise
        self._patience.end(waiting)
        return answer

    def ValidateVolumeCapabilities(  # noqa: N802
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> Any:
        return self._everywhere.ask_owner("ValidateVolumeCapabilities", request, context)

    def ControllerExpandVolume(  # noqa: N802
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> Any:
        return self._everywhere.ask_owner("ControllerExpandVolume", request, context)

    def ControllerGetVolume(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> Any:
        return self._everywhere.ask_owner("ControllerGetVolume", request, context)

    def ControllerGetVolumeHealth(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> Any:
        return self._everywhere.ask_owner("ControllerGetVolumeHealth", request, context)

    def ControllerModifyVolume(  # noqa: N802
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> Any:
        return self._everywhere.ask_owner("ControllerModifyVolume", request, context)
