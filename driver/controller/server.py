"""The controller plugin's process: CSI's services for the cluster on a unix socket, for the sidecars beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from csi import csi_pb2_grpc
from driver.controller import inventory
from driver.controller.controller import Controller
from driver.controller.everywhere import Everywhere
from driver.controller.groups import GroupController
from driver.rpc.identity import Identity
from driver.rpc.sockets import check_endpoint, listen
from driver.rpc.tls import Source

_THREADS: Final = 256
"""Calls at once: sidecars make 100 and a few, and each waits for a node."""
_GRACE_SECONDS: Final = 10.0


class Plugin:
    """Serves on `endpoint`. `source` has the certificates without which no node can be asked."""

    def __init__(
        self, endpoint: str, everywhere: Everywhere, source: Source, interceptors: Sequence[grpc.ServerInterceptor]
    ) -> None:
        self.path = check_endpoint(endpoint)
        self._cluster = everywhere.nodes.cluster
        self._source = source
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="csi"), interceptors=list(interceptors)
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        csi_pb2_grpc.add_IdentityServicer_to_server(Identity(self.why_not), self._server)
        csi_pb2_grpc.add_ControllerServicer_to_server(Controller(everywhere), self._server)
        csi_pb2_grpc.add_GroupControllerServicer_to_server(GroupController(everywhere), self._server)
        self._server.add_generic_rpc_handlers((inventory.handler(everywhere.nodes),))

    def why_not(self) -> str | None:
        """Why the controller is not ready; None if it is."""
        if not self._cluster.is_known:
            return "the Kubernetes API has not told yet which nodes and pods there are"
        if self._source() is None:
            return "there are no certificates yet with which to call node plugins"
        return None

    def start(self) -> None:
        """Raises FailedPrecondition if the socket cannot be had."""
        listen(self._server, self.path)
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Remove the socket, and let the calls in hand end. In this order: by their end it may be a successor's."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._server.stop(_GRACE_SECONDS).wait()
