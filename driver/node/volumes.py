"""CSI Controller: the volumes of this node. Mixin of `controller.Controller`; gRPC's threads."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import wrappers_pb2

from csi import csi_pb2
from driver.core.errors import EngineUnavailable, InvalidArgument, NotFound, OutOfSpace
from driver.node.creation import Creation
from driver.node.here import Here
from driver.rpc import capabilities, parameters
from driver.rpc.names import MAKING_KEY, NAME_KEY, engine_name
from driver.rpc.paging import page


class VolumeCalls:
    """Create, delete, list, look up, check and grow."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._creation = Creation(here)

    def CreateVolume(  # noqa: N802
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """The volume of that name, made if there is none. One from a snapshot or a volume goes on being made if the caller
        gives up: it belongs to the name. Raises OutOfSpace for a place that is not here, and when the engine has been away
        for a minute: the claim is scheduled again."""
        name = engine_name(request.name)
        possible = capabilities.check_all(request.volume_capabilities)
        given = parameters.of_volume(request.parameters)
        parameters.check_mutable(request.mutable_parameters)
        required = request.accessibility_requirements.requisite
        if required and not any(self._here.is_at(topology) for topology in required):
            raise OutOfSpace(f"the volume is wanted on other nodes than {self._here.node!r}")
        try:
            with self._here.operations.on(f"volume of name {name}"):
                volume = self._creation.volume(name, request, possible, given, context)
        except EngineUnavailable as error:
            if self._here.engine.is_lost:
                raise OutOfSpace(error.message, error.hint) from error
            raise
        answer = self._volume(volume, request.volume_content_source)
        if given.mkfs_options:
            answer.volume_context["mkfsOptions"] = request.parameters["mkfsOptions"]
        return csi_pb2.CreateVolumeResponse(volume=answer)

    def DeleteVolume(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        """Remove volume and data. Nothing happens if it is gone. Raises FailedPrecondition while it is in use."""
        try:
            volume = self._here.volume(request.volume_id)
            with self._here.operations.on(f"volume {request.volume_id}", f"volume of name {volume['name']}"):
                self._here.engine.call("volume.detach", name=volume["id"])
                self._here.engine.call("volume.delete", name=volume["id"])
        except NotFound:
            pass
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(  # noqa: N802
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Whether the volume can be used in all these ways."""
        if not request.volume_id:
            raise InvalidArgument("the volume id is missing")
        if not request.volume_capabilities:
            raise InvalidArgument("the volume capabilities are missing")
        self._here.volume(request.volume_id)
        reason = capabilities.is_possible(request.volume_capabilities)
        if reason is None and request.mutable_parameters:
            reason = "this driver has no mutable parameters"
        if reason is not None:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=reason)
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ListVolumes(  # noqa: N802
        self, request: csi_pb2.ListVolumesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListVolumesResponse:
        volumes = sorted(self._here.engine.call("volume.list")["volumes"], key=lambda volume: str(volume["id"]))
        shown, token = page(volumes, lambda volume: str(volume["id"]), request.max_entries, request.starting_token)
        entries = [
            csi_pb2.ListVolumesResponse.Entry(
                volume=self._volume(volume, named=True),
                status=csi_pb2.ListVolumesResponse.VolumeStatus(published_node_ids=self._published(volume)),
            )
            for volume in shown
        ]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    def GetCapacity(  # noqa: N802
        self, request: csi_pb2.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        """What a new thick volume could get: nothing once the engine has been away for a minute, so that no claim is
        scheduled here. Parameters are the StorageClass's, unstripped; what is wrong with them is said at CreateVolume."""
        if request.HasField("accessible_topology") and not self._here.is_at(request.accessible_topology):
            return csi_pb2.GetCapacityResponse()
        if request.volume_capabilities and capabilities.is_possible(request.volume_capabilities) is not None:
            return csi_pb2.GetCapacityResponse()
        try:
            found = self._here.engine.call("volume.capacity")
        except EngineUnavailable:
            if self._here.engine.is_lost:
                return csi_pb2.GetCapacityResponse()
            raise
        return csi_pb2.GetCapacityResponse(
            available_capacity=found["available_bytes"],
            maximum_volume_size=wrappers_pb2.Int64Value(value=min(found["available_bytes"], found["volume_bytes_max"])),
            minimum_volume_size=wrappers_pb2.Int64Value(value=found["volume_bytes_min"]),
        )

    def ControllerExpandVolume(  # noqa: N802
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Grow the volume, online too; the file system on it is the node's to grow. Raises OutOfRange, OutOfSpace."""
        self._here.parse(request.volume_id)
        if not request.HasField("capacity_range"):
            raise InvalidArgument("the capacity range is missing")
        if request.HasField("volume_capability"):
            capabilities.check(request.volume_capability)
        volume = self._here.volume(request.volume_id)
        wanted = capabilities.size_for(request.capacity_range, (), least_bytes=volume["size_bytes"])
        with self._here.operations.on(f"volume {request.volume_id}"):
            grown = self._here.engine.call("volume.grow", name=volume["id"], size_bytes=wanted)
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=grown["size_bytes"], node_expansion_required=not request.volume_capability.HasField("block")
        )

    def ControllerGetVolume(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetVolumeResponse:
        volume = self._here.volume(request.volume_id)
        return csi_pb2.ControllerGetVolumeResponse(
            volume=self._volume(volume),
            status=csi_pb2.ControllerGetVolumeResponse.VolumeStatus(published_node_ids=self._published(volume)),
        )

    def ControllerModifyVolume(  # noqa: N802
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """There is nothing to modify: InvalidArgument says so."""
        self._here.volume(request.volume_id)
        parameters.check_mutable(request.mutable_parameters)
        raise InvalidArgument("the mutable parameters are missing", "this driver has none")

    def _published(self, volume: dict[str, Any]) -> list[str]:
        return [self._here.node] if volume["attached"] else []

    def _volume(
        self, volume: dict[str, Any], source: csi_pb2.VolumeContentSource | None = None, *, named: bool = False
    ) -> csi_pb2.Volume:
        told = {NAME_KEY: volume["name"]} if named else {}
        if named and volume["state"] != "available":
            told[MAKING_KEY] = "true"
        made = csi_pb2.Volume(
            capacity_bytes=volume["size_bytes"],
            volume_id=self._here.handle(volume["id"]),
            accessible_topology=[self._here.topology()],
            volume_context=told,
        )
        if source is not None and source.WhichOneof("type"):
            made.content_source.CopyFrom(source)
        elif volume["source_snapshot"]:
            made.content_source.snapshot.snapshot_id = volume["source_snapshot"]
        elif volume["source_volume"]:
            made.content_source.volume.volume_id = self._here.handle(volume["source_volume"])
        return made
