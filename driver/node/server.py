"""The node plugin's process: CSI's services for this node on a unix socket, kubelet registration, health, metrics."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from csi import csi_pb2_grpc
from driver.core.client import Client
from driver.core.errors import FailedPrecondition, InvalidArgument
from driver.node.controller import Controller
from driver.node.groups import GroupController
from driver.node.here import Here
from driver.node.identity import Identity
from driver.node.names import node_id
from driver.node.node import Node

_THREADS: Final = 64
"""Calls at once: some wait for restores."""
_GRACE_SECONDS: Final = 10.0
_OPTIONS: Final = [("grpc.max_receive_message_length", 4 << 20)]


def check_endpoint(endpoint: str) -> Path:
    """The socket's path of unix:///path or unix:/path. Raises InvalidArgument."""
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    if not endpoint.startswith("unix:") or not path.startswith("/"):
        raise InvalidArgument(f"{endpoint!r} is no endpoint", "use unix:///path/of/csi.sock")
    return Path(path)


def listen(server: grpc.Server, path: Path) -> None:
    """Serve on the unix socket `path`, mode 0600. Raises FailedPrecondition if that cannot be had."""
    _clear(path)
    old = os.umask(0o077)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        wrong = f"cannot listen at {path}: {error}"
        raise FailedPrecondition(wrong, "use a short path that may be written") from None
    finally:
        os.umask(old)
    server.start()


def _clear(path: Path) -> None:
    """Remove a dead predecessor's socket. Raises FailedPrecondition if somebody listens there."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as other:
            if other.connect_ex(str(path)) == 0:
                raise FailedPrecondition(f"another plugin listens at {path}", "stop it first")
        path.unlink()


class Plugin:
    """Serves on `endpoint` what one node has to say. gRPC's health service is of the process, not of the engine."""

    def __init__(
        self, endpoint: str, engine: Client, node: str, *, volumes_max: int, standalone: bool,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
    ) -> None:  # fmt: skip
        self.path = check_endpoint(endpoint)
        self.here = Here(node_id(node), engine)
        self.identity = Identity(self.here)
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
        """Let the calls in hand end, and remove the socket."""
        self._server.stop(_GRACE_SECONDS).wait()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def until_told(told: threading.Event) -> None:
    """Wait for SIGTERM, SIGINT or `told`. Main thread only."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    while not told.wait(1.0):
        pass
