"""CSI Identity: who this driver is, what it can do as a whole, and whether it is ready. gRPC's threads."""

from __future__ import annotations

import grpc
from google.protobuf import wrappers_pb2

from csi import csi_pb2, csi_pb2_grpc
from driver import __version__
from driver.core.errors import StillframeError
from driver.node.here import Here
from driver.node.names import DRIVER

_Service = csi_pb2.PluginCapability.Service
_SERVICES = (_Service.CONTROLLER_SERVICE, _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS, _Service.GROUP_CONTROLLER_SERVICE)
_Expansion = csi_pb2.PluginCapability.VolumeExpansion


class Identity(csi_pb2_grpc.IdentityServicer):
    """The same in every mode."""

    def __init__(self, here: Here) -> None:
        self._here = here

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
        """Ready when the engine answers."""
        return csi_pb2.ProbeResponse(ready=wrappers_pb2.BoolValue(value=self.why_not() is None))

    def why_not(self) -> str | None:
        """Why the driver is not ready; None if it is."""
        try:
            self._here.engine.call("engine.info")
        except StillframeError as error:
            return error.message
        return None
