"""Mutual TLS with real gRPC on both sides: who is let in, who is not, and certificates that change while calls are made."""

from __future__ import annotations

import concurrent.futures
import shutil
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import csi_pb2, csi_pb2_grpc
from driver.controller import authority
from driver.controller.authority import CLIENT, SERVER, Authority
from driver.controller.cluster import Place, State
from driver.controller.nodes import Nodes
from driver.core.errors import NodeSilent, NodeUnavailable
from driver.node.forwarded import Forwarded
from driver.node.here import Here, NodeEngine
from driver.rpc import tls
from driver.rpc.calls import CallInterceptor
from driver.rpc.tls import CONTROLLER_NAME, NODE_NAME, Certificates
from tests.servers import free_port
from tests.waiting import wait_until

ADDRESS = "127.0.8.1"


def now() -> datetime:
    return datetime.now(UTC)


def certificates(by: Authority, name: str, usage: Any, *trusted: Authority) -> Certificates:
    certificate, key = authority.issue(by, name, usage, now())
    return Certificates(authority.dump(trusted or (by,))[0], certificate, key)


def lay_out(folder: Path, held: Certificates) -> None:
    """As kubelet does: a new folder, then one link."""
    content = folder / f"..{len(list(folder.iterdir()))}"
    content.mkdir()
    for name, data in ((tls.CA_FILE, held.ca), (tls.CERTIFICATE_FILE, held.certificate), (tls.KEY_FILE, held.key)):
        (content / name).write_bytes(data)
    (folder / "..new").symlink_to(content.name)
    (folder / "..new").rename(folder / "..data")


class OneNode:
    """Stands for what Kubernetes says: one node, Ready, at ADDRESS."""

    def find(self, node: str) -> Place:
        return Place(node, node, State.READY, ADDRESS)


class Rig:
    """A node plugin's TCP side, and authorities."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ours = authority.make_authority(now())
        self.node = certificates(self.ours, NODE_NAME, SERVER)
        self.controller = certificates(self.ours, CONTROLLER_NAME, CLIENT)
        here = Here("node-a", NodeEngine(folder / "no-engine", "node-a"))
        self.server = Forwarded(f"{ADDRESS}:{self.port}", folder, here, [CallInterceptor(lambda *_: None)])

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESS, self.port)) == 0

    def nodes(self, held: Certificates | None) -> Nodes:
        """The controller's side."""
        cluster: Any = OneNode()
        return Nodes(cluster, lambda: held, self.port)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr("driver.controller.nodes.CONNECT_SECONDS", 60.0)
    made = Rig(tmp_path)
    made.server.start()
    try:
        yield made
    finally:
        made.server.stop()


def ask(nodes: Nodes, node: str = "node-a") -> Any:
    return nodes.call(node, "ControllerGetCapabilities", csi_pb2.ControllerGetCapabilitiesRequest(), 60.0)


def is_refused(nodes: Nodes) -> None:
    with pytest.MonkeyPatch.context() as soon, pytest.raises((NodeUnavailable, NodeSilent)):
        soon.setattr("driver.controller.nodes.CONNECT_SECONDS", 3.0)
        ask(nodes)


def test_a_node_listens_once_it_has_certificates_and_answers_the_controller(rig: Rig) -> None:
    assert not rig.listens()
    lay_out(rig.folder, rig.node)
    wait_until(rig.listens)
    nodes = rig.nodes(rig.controller)
    assert ask(nodes).capabilities
    with pytest.raises(grpc.RpcError) as raised:
        nodes.call("node-a", "GetCapacity", csi_pb2.GetCapacityRequest(), 60.0)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "engine" in str(raised.value.details())


def test_an_answer_of_another_node_does_not_count(rig: Rig) -> None:
    lay_out(rig.folder, rig.node)
    wait_until(rig.listens)
    with pytest.raises(NodeUnavailable, match="node-a"):
        ask(rig.nodes(rig.controller), "node-b")


def test_strangers_are_refused_by_the_node(rig: Rig) -> None:
    lay_out(rig.folder, rig.node)
    wait_until(rig.listens)
    other = authority.make_authority(now())
    foreign = certificates(other, CONTROLLER_NAME, CLIENT, rig.ours)
    the_nodes_own = rig.node
    a_server_by_the_right_name = certificates(rig.ours, CONTROLLER_NAME, SERVER)
    another_client = certificates(rig.ours, "somebody.example.org", CLIENT)
    for held in (foreign, the_nodes_own, a_server_by_the_right_name):
        is_refused(rig.nodes(held))
    is_refused(rig.nodes(another_client))
    with grpc.insecure_channel(f"{ADDRESS}:{rig.port}") as channel, pytest.raises(grpc.RpcError) as raised:
        csi_pb2_grpc.ControllerStub(channel).ControllerGetCapabilities(
            csi_pb2.ControllerGetCapabilitiesRequest(), timeout=60
        )
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    without = grpc.ssl_channel_credentials(rig.node.ca)
    with grpc.secure_channel(f"{ADDRESS}:{rig.port}", without, tls.CLIENT_OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            csi_pb2_grpc.ControllerStub(channel).ControllerGetCapabilities(
                csi_pb2.ControllerGetCapabilitiesRequest(), timeout=60
            )
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ask(rig.nodes(rig.controller)).capabilities


@pytest.mark.parametrize("kind", ["the controller's", "a client's by the right name", "a foreign", "another server's"])
def test_a_node_that_shows_the_wrong_certificate_is_refused_by_the_controller(rig: Rig, kind: str) -> None:
    other = authority.make_authority(now())
    shown = {
        "the controller's": rig.controller,
        "a client's by the right name": certificates(rig.ours, NODE_NAME, CLIENT),
        "a foreign": certificates(other, NODE_NAME, SERVER, rig.ours),
        "another server's": certificates(rig.ours, "web.example.org", SERVER),
    }[kind]
    lay_out(rig.folder, shown)
    wait_until(rig.listens)
    is_refused(rig.nodes(rig.controller))


def test_an_expired_certificate_is_refused(rig: Rig) -> None:
    lay_out(rig.folder, rig.node)
    wait_until(rig.listens)
    certificate, key = authority.issue(rig.ours, CONTROLLER_NAME, CLIENT, now() - authority.LIFE - timedelta(minutes=1))
    is_refused(rig.nodes(Certificates(rig.node.ca, certificate, key)))


def test_certificates_change_without_a_lost_call(rig: Rig) -> None:
    """Both sides and the authority, while calls are made all the time; then the old ones are worth nothing."""
    lay_out(rig.folder, rig.node)
    wait_until(rig.listens)
    held = rig.controller
    cluster: Any = OneNode()
    nodes = Nodes(cluster, lambda: held, rig.port)
    stopped = threading.Event()

    def work() -> int:
        done = 0
        while not stopped.is_set():
            assert ask(nodes).capabilities
            done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        try:
            new = authority.make_authority(now())
            lay_out(rig.folder, certificates(rig.ours, NODE_NAME, SERVER, rig.ours, new))
            ask(nodes)
            held = certificates(rig.ours, CONTROLLER_NAME, CLIENT, rig.ours, new)
            ask(nodes)
            lay_out(rig.folder, certificates(new, NODE_NAME, SERVER, rig.ours, new))
            ask(nodes)
            held = certificates(new, CONTROLLER_NAME, CLIENT, rig.ours, new)
            ask(nodes)
            lay_out(rig.folder, certificates(new, NODE_NAME, SERVER))
            held = certificates(new, CONTROLLER_NAME, CLIENT)
            ask(nodes)
        finally:
            stopped.set()
        assert all(worker.result(150) > 0 for worker in workers)
    is_refused(rig.nodes(rig.controller))


def test_half_written_certificates_are_not_taken(rig: Rig) -> None:
    lay_out(rig.folder, rig.node)
    wait_until(rig.listens)
    other = certificates(rig.ours, NODE_NAME, SERVER)
    lay_out(rig.folder, Certificates(other.ca, other.certificate, rig.node.key))
    assert tls.read(rig.folder) is None
    assert ask(rig.nodes(rig.controller)).capabilities
    shutil.rmtree(rig.folder / "..data", ignore_errors=True)
    (rig.folder / "..data").unlink()
    assert ask(rig.nodes(rig.controller)).capabilities
