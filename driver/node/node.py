"""CSI Node: what this node does with volumes. `staging` and `publishing` do the work. gRPC's threads."""

from __future__ import annotations

import os
import stat
from typing import Final

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver.core.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from driver.core.sizes import format_size
from driver.host import filesystems, mountinfo, mounts
from driver.node import publishing
from driver.node.conditions import check_id, check_volume, dead_of, health_of, storage_health
from driver.node.here import Here
from driver.node.staging import READ_ONLY_MODE, Staging, check_path
from driver.rpc import capabilities

_Rpc = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES: Final = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.GET_STORAGE_HEALTH,
)


class Node(csi_pb2_grpc.NodeServicer):
    """`volumes_max` is how many volumes the node takes; 0 for no limit."""

    def __init__(self, here: Here, volumes_max: int) -> None:
        self._here = here
        self._volumes_max = volumes_max
        self._staging = Staging(here)

    def NodeStageVolume(  # noqa: N802
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        check_id(request.volume_id)
        path = check_path("staging target", request.staging_target_path)
        capability = _capability(request)
        volume = check_volume(self._here, request.volume_id)
        with self._here.operations.on(f"volume {request.volume_id}"):
            self._staging.stage(volume, path, capability, request.volume_context)
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        check_id(request.volume_id)
        path = check_path("staging target", request.staging_target_path)
        with self._here.operations.on(f"volume {request.volume_id}"):
            self._staging.unstage(request.volume_id, path)
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(  # noqa: N802
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Also stages again, where the node or the engine was started anew and the staging mount is gone or dead."""
        check_id(request.volume_id)
        target = check_path("target", request.target_path)
        capability = _capability(request)
        if not request.staging_target_path:
            raise FailedPrecondition("the staging target path is missing", "stage the volume first")
        path = check_path("staging target", request.staging_target_path)
        volume = check_volume(self._here, request.volume_id)
        is_block = capability.WhichOneof("access_type") == "block"
        read_only = request.readonly or capability.access_mode.mode == READ_ONLY_MODE
        with self._here.operations.on(f"volume {request.volume_id}"):
            device = self._staging.stage(volume, path, capability, request.volume_context)
            source = device if is_block else path
            if capability.access_mode.mode == publishing.SINGLE_WRITER:
                publishing.check_alone(source, target)
            publishing.publish(source, target, device, read_only=read_only)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        check_id(request.volume_id)
        target = check_path("target", request.target_path)
        with self._here.operations.on(f"volume {request.volume_id}"):
            publishing.unpublish(target, self._here.devices)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(  # noqa: N802
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        check_id(request.volume_id)
        if not request.volume_path:
            raise InvalidArgument("the volume path is missing")
        volume = check_volume(self._here, request.volume_id)
        path = _check_there(request.volume_path)
        usage = csi_pb2.VolumeUsage
        if stat.S_ISBLK(os.stat(path).st_mode):
            return csi_pb2.NodeGetVolumeStatsResponse(usage=[usage(total=volume["size_bytes"], unit=usage.BYTES)])
        found = mounts.statistics(path)
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=[
                usage(total=found.total_bytes, used=found.used_bytes, available=found.available_bytes, unit=usage.BYTES),
                usage(total=found.total_inodes, used=found.used_inodes, available=found.free_inodes, unit=usage.INODES),
            ]
        )

    def NodeExpandVolume(  # noqa: N802
        self, request: csi_pb2.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Grow the file system to its volume's size, mounted. Raises OutOfRange if the volume is too small."""
        check_id(request.volume_id)
        if not request.volume_path:
            raise InvalidArgument("the volume path is missing")
        capabilities.check_range(request.capacity_range)
        if request.HasField("volume_capability"):
            capabilities.check(request.volume_capability)
        volume = check_volume(self._here, request.volume_id)
        path = _check_there(request.volume_path)
        if request.capacity_range.required_bytes > volume["size_bytes"]:
            raise OutOfRange(
                f"the volume has {format_size(volume['size_bytes'])}, less than is required",
                "expand it by the controller first",
            )
        if not stat.S_ISBLK(os.stat(path).st_mode):
            with self._here.operations.on(f"volume {request.volume_id}"):
                self._grow(volume["device"], path)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=volume["size_bytes"])

    @staticmethod
    def _grow(device: str | None, path: str) -> None:
        found = mountinfo.mounts_at(path)
        if device is not None and found and found[-1] in mountinfo.mounts_of(device):
            filesystems.grow(device, path, found[-1].fstype)
            return
        raise FailedPrecondition(f"the volume is not mounted at {path}", "stage and publish it first")

    def NodeGetVolumeHealth(  # noqa: N802
        self, request: csi_pb2.NodeGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        """What the engine knows, and whether the mounts that are named are alive."""
        volume = check_volume(self._here, request.volume_id)
        health = health_of(self._here, volume, dead_of(self._here, [volume]))
        for what, path in (("staging target", request.staging_target_path), ("publish", request.volume_publish_path)):
            if health.health_statuses:
                break
            if path and mountinfo.mounts_at(check_path(what, path)) and not mounts.is_healthy(path):
                health.health_statuses.append(
                    csi_pb2.VolumeHealth.VolumeHealthEntry(
                        status=csi_pb2.INACCESSIBLE, reason="MountDead", message=f"the mount at {path} answers with errors"
                    )
                )
        return csi_pb2.NodeGetVolumeHealthResponse(volume_health=health)

    def NodeGetStorageHealth(  # noqa: N802
        self, request: csi_pb2.NodeGetStorageHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        return csi_pb2.NodeGetStorageHealthResponse(backend_health=storage_health(self._here))

    def NodeGetCapabilities(  # noqa: N802
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    def NodeGetInfo(  # noqa: N802
        self, request: csi_pb2.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetInfoResponse:
        """Needs no engine: kubelet unregisters a driver that fails here."""
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._here.node, max_volumes_per_node=self._volumes_max, accessible_topology=self._here.topology()
        )


def _capability(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> csi_pb2.VolumeCapability:
    if not request.HasField("volume_capability"):
        raise InvalidArgument("the volume capability is missing")
    return capabilities.check(request.volume_capability)


def _check_there(path: str) -> str:
    if not path.startswith("/") or not os.path.lexists(path):
        raise NotFound(f"there is nothing at {path}", "stage and publish the volume first")
    return check_path("volume", path)
