"""Makes the driver known to kubelet: plugin registration v1 on a socket in its plugins_registry folder.

kubelet finds the socket, asks who is there and where CSI is served, calls NodeGetInfo there, and says how that went. So CSI
is served before this is. gRPC's threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from csi import pluginregistration_pb2 as api
from csi import pluginregistration_pb2_grpc as services
from driver.rpc import logs
from driver.rpc.names import DRIVER

CSI_VERSION: Final = "1.0.0"
"""The major version that kubelet speaks; it knows no finer ones (pkg/volume/csi)."""
_KIND: Final = "CSIPlugin"
_GRACE_SECONDS: Final = 1.0


class Registration(services.RegistrationServicer):
    """`endpoint` is the path of the CSI socket as kubelet sees it; `refused` is called when kubelet does not take us."""

    def __init__(self, folder: Path, endpoint: str, refused: Callable[[str], None]) -> None:
        self.path = folder / f"{DRIVER}-reg.sock"
        self._endpoint = endpoint
        self._refused = refused
        self._server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="registration"))
        services.add_RegistrationServicer_to_server(self, self._server)

    def start(self, listen: Callable[[grpc.Server, Path], None]) -> None:
        """Serve. CSI is served already. Raises FailedPrecondition."""
        listen(self._server, self.path)

    def stop(self) -> None:
        """Let kubelet see that we go."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._server.stop(_GRACE_SECONDS).wait()

    def GetInfo(self, request: api.InfoRequest, context: grpc.ServicerContext) -> api.PluginInfo:  # noqa: N802
        return api.PluginInfo(type=_KIND, name=DRIVER, endpoint=self._endpoint, supported_versions=[CSI_VERSION])

    def NotifyRegistrationStatus(  # noqa: N802
        self, request: api.RegistrationStatus, context: grpc.ServicerContext
    ) -> api.RegistrationStatusResponse:
        log: Any = logs.log()
        if request.plugin_registered:
            log.info("kubelet knows the driver")
        else:
            log.error("kubelet refuses the driver", error=request.error)
            self._refused(request.error)
        return api.RegistrationStatusResponse()
