"""CSI Controller of the cluster: what it can do. The calls stand in `volumes` and `snapshots`."""

from __future__ import annotations

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver.controller.everywhere import Everywhere
from driver.controller.snapshots import SnapshotCalls
from driver.controller.volumes import VolumeCalls
from driver.rpc.capabilities import controller_capabilities


class Controller(VolumeCalls, SnapshotCalls, csi_pb2_grpc.ControllerServicer):
    """There is no attaching: ControllerPublishVolume stays unimplemented (attachRequired: false)."""

    def __init__(self, everywhere: Everywhere) -> None:
        VolumeCalls.__init__(self, everywhere)

    def ControllerGetCapabilities(  # noqa: N802
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        return controller_capabilities()
