"""CSI's Controller and GroupController of this node on TCP, for the controller plugin alone (mutual TLS)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from csi import csi_pb2_grpc
from driver.core.errors import InvalidArgument
from driver.node.controller import Controller
from driver.node.groups import GroupController
from driver.node.here import Here
from driver.node.work import work
from driver.rpc import logs, progress, tls

_THREADS: Final = 256
"""More than sidecars call at once (100 and a few): calls that wait for restores must not keep a health check waiting."""
_GRACE_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 1.0


def check_address(text: str) -> str:
    """What gRPC listens at for HOST:PORT or :PORT (every address of the host). Raises InvalidArgument."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"{text!r} is no address to listen at", "write :9810, or HOST:9810")
    return f"{host or '[::]'}:{port}"


class Forwarded:
    """Listens at `address` as soon as `folder` holds certificates, which the controller makes; they are read anew at each
    connection."""

    def __init__(self, address: str, folder: Path, here: Here, interceptors: Sequence[grpc.ServerInterceptor]) -> None:
        self._address = check_address(address)
        self._folder = folder
        self.hindrance: str | None = "CSI is not served to the controller yet"
        """Why it does not listen; None if it does. Any thread may read it."""
        self._stopped = threading.Event()
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="forwarded"),
            interceptors=[tls.OnlyTheController(here.node), *interceptors], options=tls.SERVER_OPTIONS,
        )  # fmt: skip
        healthy = health.HealthServicer()
        healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, self._server)
        csi_pb2_grpc.add_ControllerServicer_to_server(Controller(here), self._server)
        csi_pb2_grpc.add_GroupControllerServicer_to_server(GroupController(here), self._server)
        self._server.add_generic_rpc_handlers((progress.handler(lambda ids: work(here, ids)),))

    def start(self) -> None:
        """Returns at once."""
        threading.Thread(target=self._start, name="forwarded", daemon=True).start()

    def _start(self) -> None:
        """The whole of a thread."""
        while not self._stopped.is_set():
            before, self.hindrance = self.hindrance, self._listen()
            if self.hindrance is None:
                logs.log().info("CSI is served to the controller", address=self._address)
                return
            if self.hindrance != before:
                logs.log().warning("CSI is not served to the controller yet", reason=self.hindrance)
            self._stopped.wait(_AGAIN_SECONDS)

    def _listen(self) -> str | None:
        """What hinders; None if nothing does."""
        first = tls.read(self._folder)
        if first is None:
            return f"{self._folder} has no {tls.CA_FILE}, {tls.CERTIFICATE_FILE} and {tls.KEY_FILE} that belong together"
        try:
            self._server.add_secure_port(self._address, tls.server_credentials(first, lambda: tls.read(self._folder)))
        except RuntimeError as error:
            return f"cannot listen at {self._address}: {error}"
        self._server.start()
        return None

    def stop(self) -> None:
        """Let the calls in hand end."""
        self._stopped.set()
        self._server.stop(_GRACE_SECONDS).wait()
