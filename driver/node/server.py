"""The node plugin's process: CSI's services for this node on a unix socket, kubelet registration, health, metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from csi import csi_pb2_grpc
from driver.core.client import Client
from driver.node.controller import Controller
from driver.node.groups import GroupController
from driver.node.here import Here, NodeEngine
from driver.node.node import Node
from driver.rpc.identity import Identity
from driver.rpc.names import node_id
from driver.rpc.sockets import check_endpoint, listen

_THREADS: Final = 64
"""Calls at once: some wait for restores."""
_GRACE_SECONDS: Final = 10.0
_OPTIONS: Final = [("grpc.max_receive_message_length", 4 << 20)]


class Plugin:
    """Serves on `endpoint` what one node has to say. gRPC's health service is of the process, not of the engine."""

    def __init__(
        self, endpoint: str, engine: Client, node: str, *, volumes_max: int, standalone: bool,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
    ) -> None:  # fmt: skip
        self.path = check_endpoint(endpoint)
        self.here = Here(node_id(node), NodeEngine(engine.state, node))
        self.identity = Identity(self.here.why_not)
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="csi"), interceptors=list(interceptors), options=_OPTIONS
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        csi_pb2_grpc.add_IdentityServicer_to_server(self.identity, self._server)
        csi_pb2_grpc.add_NodeServicer_to_server(Node(self.here, volumes_max), self._server)
        if standalone:
            csi_pb2_grpc.add_ControllerServicer_to_server(Controller(self.here), self._server)
            csi_pb2_grpc.add_GroupControllerServicer_to_server(GroupController(self.here), self._server)

    def start(self) -> None:
        """Raises FailedPrecondition if the socket cannot be had."""
        listen(self._server, self.path)
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Remove the socket, and let the calls in hand end. In this order: by their end it may be a successor's."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._server.stop(_GRACE_SECONDS).wait()
