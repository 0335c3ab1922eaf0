"""Calls to node plugins: CSI itself, over mutual TLS. gRPC's threads.

A node is asked only if Kubernetes says that it is Ready and its plugin answers a health check within three seconds; whatever
hinders that is NodeUnavailable, with nothing begun. An answer counts only from the node that was meant: pod addresses are
used again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from csi import csi_pb2
from driver.controller.cluster import Cluster, Place, State
from driver.core.errors import NodeSilent, NodeUnavailable
from driver.rpc import logs, progress, tls
from driver.rpc.deadlines import time_left

CONNECT_SECONDS: Final = 3.0
_CALL_SECONDS: Final = 300.0
_AT_ONCE: Final = 16
_SERVICES: Final = ("Controller", "GroupController")
_FIXES: Final = {
    State.NOT_READY: "bring it back; if it is gone for good, delete its Node object, then: stillframe node forget {node}",
    State.ABSENT: "bring it back; if it is gone for good: stillframe node forget {node}",
    State.NO_PLUGIN: "look at the node plugin's pod on that node: kubectl get pods -o wide",
    State.READY: "look at the node plugin's pod on that node and its log; a NetworkPolicy must let the controller in",
}


def unavailable(place: Place, what: str = "") -> NodeUnavailable:
    """The error for a node that cannot be asked."""
    fix = _FIXES[place.state].format(node=place.name or place.id)
    return NodeUnavailable(f"node {place} {what or place.state.value}", fix)


class _Link:
    """A connection to one plugin. Closed when it is not wanted any more and the last call on it has ended."""

    def __init__(self, address: str, certificates: tls.Certificates) -> None:
        self.address = address
        self.certificates = certificates
        self.channel = tls.channel(address, certificates)
        self.calls = 0
        self.is_wanted = True


class Nodes:
    """All of them. `source` has the controller's certificates: where they or a pod's address have changed, a new connection
    is made, and calls in hand end on the old one."""

    def __init__(self, cluster: Cluster, source: tls.Source, port: int) -> None:
        self.cluster = cluster
        self._source = source
        self._port = port
        self._lock = threading.Lock()  # guards the links and their counts; nothing waits with it held
        self._links: dict[str, _Link] = {}

    def ask(self, node: str, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """What the node answers to a call that came to us, within its deadline; cancelled with it.

        Raises NodeUnavailable, NodeSilent (asked, and no answer), grpc.RpcError as the node answered.
        """
        return self.call(node, method, request, min(time_left(context), _CALL_SECONDS), context)

    def ready(self) -> list[str]:
        """Those that can be asked, as far as is known, in the order of their names in handles."""
        return [node for node in self.cluster.with_plugins() if self.cluster.find(node).state is State.READY]

    def ask_all(
        self, nodes: Sequence[str], method: str, request: Any, seconds: float = _CALL_SECONDS,
        context: grpc.ServicerContext | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What nodes answer, in their order: all are asked at once, within `seconds` and the deadline of the call that it is
        for. Those that do not answer are logged, and are not in it."""

        def ask(node: str) -> Any:
            left = seconds if context is None else min(seconds, time_left(context))
            try:
                return self.call(node, method, request, left, context)
            except (NodeUnavailable, NodeSilent) as error:
                logs.log().info("a node cannot be asked", node=node, method=method, error=error.message)
            except grpc.RpcError as error:
                logs.log().info("a node cannot be asked", node=node, method=method, error=str(error.details()))
            return None

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask-all") as pool:
            found = list(pool.map(ask, nodes))
        return {node: answer for node, answer in zip(nodes, found, strict=True) if answer is not None}

    def call(
        self, node: str, method: str, request: Any, seconds: float, context: grpc.ServicerContext | None = None
    ) -> Any:
        """As `ask`, within `seconds`."""
        place = self.cluster.find(node)
        if place.state is not State.READY or place.address is None:
            raise unavailable(place)
        host = f"[{place.address}]" if ":" in place.address else place.address
        with self._link(place.id, f"{host}:{self._port}") as channel:
            _check_there(channel, place, min(CONNECT_SECONDS, seconds))
            return _answer(channel, place, method, request, seconds, context)

    @contextlib.contextmanager
    def _link(self, node: str, address: str) -> Iterator[grpc.Channel]:
        certificates = self._source()
        if certificates is None:
            raise NodeUnavailable("the controller has no certificate yet", "its log says what it waits for")
        with self._lock:
            link = self._links.get(node)
            if link is None or (link.address, link.certificates) != (address, certificates):
                if link is not None:
                    self._drop(link)
                link = self._links[node] = _Link(address, certificates)
            link.calls += 1
        try:
            yield link.channel
        finally:
            with self._lock:
                link.calls -= 1
                if not link.is_wanted and not link.calls:
                    link.channel.close()

    @staticmethod
    def _drop(link: _Link) -> None:
        link.is_wanted = False
        if not link.calls:
            link.channel.close()


def _check_there(channel: grpc.Channel, place: Place, seconds: float) -> None:
    """Raises NodeUnavailable unless the node's own plugin answers now: then nothing was begun."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        _, call = stub.Check.with_call(health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=True)
    except grpc.RpcError as error:
        is_silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        why = f"nothing answers within {seconds:.1f} s" if is_silent else f"{error.code().name}: {error.details()}"
        raise unavailable(place, f"is Ready, but its plugin at {place.address} cannot be reached: {why}") from None
    by = _answered_by(call)
    if by != place.id:
        raise unavailable(place, f"has not its plugin at its pod's address {place.address}: that of node {by!r} answers")


def _answered_by(call: Any) -> str | None:
    return dict(call.trailing_metadata() or ()).get(tls.ANSWERED_BY)


def _answer(
    channel: grpc.Channel, place: Place, method: str, request: Any, seconds: float, context: grpc.ServicerContext | None
) -> Any:
    path, parse = _path_and_answer(method)
    ask = channel.unary_unary(path, request_serializer=type(request).SerializeToString, response_deserializer=parse)
    call: Any = ask.future(request, timeout=seconds)
    if context is not None:
        context.add_callback(call.cancel)
    failure: grpc.RpcError | None = None
    try:
        answer = call.result()
    except grpc.RpcError as error:
        failure = error
    except grpc.FutureCancelledError:
        raise NodeSilent(f"the call to node {place} was cancelled by its caller") from None
    if _answered_by(call) != place.id:
        why = call.details() or call.code().name
        raise NodeSilent(
            f"node {place} was asked and did not answer within {seconds:.1f} s ({why})", "it is asked again; see its log"
        )
    if failure is not None:
        raise failure
    return answer


def _path_and_answer(method: str) -> tuple[str, Callable[[bytes], Any]]:
    if method == progress.METHOD:
        return progress.PATH, struct_pb2.Struct.FromString
    for name in _SERVICES:
        service = csi_pb2.DESCRIPTOR.services_by_name[name]
        if method in service.methods_by_name:
            return f"/{service.full_name}/{method}", getattr(csi_pb2, f"{method}Response").FromString
    raise ValueError(method)
