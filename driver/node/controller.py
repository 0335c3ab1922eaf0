"""CSI Controller of one node: what it can do. The calls stand in `volumes`, `snapshots` and `health`."""

from __future__ import annotations

from typing import Final

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver.node.conditions import ControllerHealthCalls
from driver.node.here import Here
from driver.node.snapshots import SnapshotCalls
from driver.node.volumes import VolumeCalls

_Rpc = csi_pb2.ControllerServiceCapability.RPC
CAPABILITIES: Final = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.GET_SNAPSHOT,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.LIST_VOLUME_HEALTH,
)


class Controller(VolumeCalls, SnapshotCalls, ControllerHealthCalls, csi_pb2_grpc.ControllerServicer):
    """There is no attaching: ControllerPublishVolume stays unimplemented (attachRequired: false)."""

    def __init__(self, here: Here) -> None:
        VolumeCalls.__init__(self, here)

    def ControllerGetCapabilities(  # noqa: N802
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        )
