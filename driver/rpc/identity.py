"""CSI Identity: who this driver is, what it can do as a whole, and whether it is ready. gRPC's threads."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf import wrappers_pb2

from csi import csi_pb2, csi_pb2_grpc
from driver import __version__
from driver.rpc.names import DRIVER

_Service = csi_pb2.PluginCapability.Service
_SERVICES = (_Service.CONTROLLER_SERVICE, _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS, _Service.GROUP_CONTROLLER_SERVICE)
_Expansion = csi_pb2.PluginCapability.VolumeExpansion


class Identity(csi_pb2_grpc.IdentityServicer):
    """The same for a node and for all of them. `why_not` says why the driver is not ready, None if it is."""

    def __init__(self, why_not: Callable[[], str | None]) -> None:
        self.why_not = why_not

    def GetPluginInfo(  # noqa: N802
        self, request: csi_pb2.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version=__version__)

    def GetPluginCapabilities(  # noqa: N802
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        capabilities = [csi_pb2.PluginCapability(service=_Service(type=kind)) for kind in _SERVICES]
        capabilities.append(csi_pb2.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE)))
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=capabilities)

    def Probe(  # noqa: N802
        self, request: csi_pb2.ProbeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse(ready=wrappers_pb2.BoolValue(value=self.why_not() is None))
