"""CSI Controller of one node: what it can do. The calls stand in `volumes`, `snapshots` and `conditions`."""

from __future__ import annotations

import grpc

from csi import csi_pb2, csi_pb2_grpc
from driver.node.conditions import ControllerHealthCalls
from driver.node.here import Here
from driver.node.snapshots import SnapshotCalls
from driver.node.volumes import VolumeCalls
from driver.rpc.capabilities import controller_capabilities


class Controller(VolumeCalls, SnapshotCalls, ControllerHealthCalls, csi_pb2_grpc.ControllerServicer):
    """There is no attaching: ControllerPublishVolume stays unimplemented (attachRequired: false)."""

    def __init__(self, here: Here) -> None:
        VolumeCalls.__init__(self, here)

    def ControllerGetCapabilities(  # noqa: N802
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        return controller_capabilities()
