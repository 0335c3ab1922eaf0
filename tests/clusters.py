"""A controller plugin with node plugins on a real Kubernetes API, for tests.

Every node plugin has an address of its own on the loopback interface, as pods have; its secret is laid out as kubelet does.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from kubernetes.client.exceptions import ApiException

from csi import csi_pb2, csi_pb2_grpc
from driver.controller.cluster import Cluster as View
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.nodes import Nodes
from driver.rpc.names import TOPOLOGY_KEY
from driver.rpc.tls import Certificates
from tests.apiserver import LABELS, NAMESPACE, Api, api_server
from tests.engines import Engine
from tests.plugins import CHANNEL_OPTIONS, Plugin
from tests.servers import free_port
from tests.waiting import wait_until


class NodePlugin(Plugin):
    """A node of the cluster: engine, plugin, Node object, pod."""

    def __init__(self, of: Cluster, name: str, address: str, *arguments: str) -> None:
        engine = Engine(of.folder / name / "state", ("--node", name, "--grace", "1", *arguments))
        (of.folder / name).mkdir()
        engine.repository("local", f"file://{of.folder}/repository")
        super().__init__(engine)
        self.of = of
        self.name = name
        self.address = address
        self.tls = self.folder / "tls"

    def lay_out(self) -> None:
        """Bring the node's secret to its folder as kubelet does: a new folder, then one link."""
        secret = self.of.secret("node")
        content = Path(tempfile.mkdtemp(prefix="..", dir=self.tls))
        for key, value in secret.items():
            (content / key).write_bytes(value)
        (self.tls / "..new").symlink_to(content.name)
        (self.tls / "..new").rename(self.tls / "..data")

    def begin(self) -> NodePlugin:
        self.tls.mkdir(exist_ok=True)
        self.lay_out()
        self.engine.start()
        self.run()
        self.of.api.put_node(self.name)
        self.of.api.put_pod(f"plugin-{self.name}", self.name, self.address)
        self.wait_known()
        return self

    def run(self) -> None:
        """Start the plugin's process, and wait until it takes connections."""
        listen = ["--listen", f"{self.address}:{self.of.port}", "--tls", str(self.tls)]
        self.start("--node", self.name, *listen)
        wait_until(self.listens)

    def wait_known(self) -> None:
        """Until each controller has heard of the node, and reaches it."""
        for controller in self.of.controllers:
            wait_until(lambda: controller.can_ask(self.name), told=controller.log.read_text)  # noqa: B023

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.of.port)) == 0

    def volumes(self) -> dict[str, str]:
        """Handles by the engine's names."""
        found = self.engine.call("volume.list")["volumes"]
        return {volume["name"]: f"{self.name}:{volume['id']}" for volume in found}


class Controller:
    """`stillframe controller` in a process of its own; `log` is its output."""

    def __init__(self, of: Cluster, name: str, *arguments: str) -> None:
        self.of = of
        self.endpoint = f"unix://{of.folder}/{name}.sock"
        self.log = of.folder / f"{name}.log"
        self.http = free_port()
        command = [
            sys.executable, "-m", "driver.cli.main", "--state", str(of.folder / "state"), "controller", "--endpoint",
            self.endpoint, "--namespace", NAMESPACE, "--node-port", str(of.port), "--identity", name, "--http",
            str(self.http), *arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, "KUBECONFIG": str(of.api.kubeconfig())},
            )  # fmt: skip
        self.channel = grpc.insecure_channel(self.endpoint, CHANNEL_OPTIONS)
        self.identity: Any = csi_pb2_grpc.IdentityStub(self.channel)
        self.controller: Any = csi_pb2_grpc.ControllerStub(self.channel)
        self.groups: Any = csi_pb2_grpc.GroupControllerStub(self.channel)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def wait_ready(self) -> Controller:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.get("/readyz") == "ok\n"
            except OSError:
                return False

        wait_until(is_ready)
        return self

    def can_ask(self, node: str) -> bool:
        """Whether it reaches that node."""
        where = csi_pb2.Topology(segments={TOPOLOGY_KEY: node})
        try:
            self.controller.GetCapacity(csi_pb2.GetCapacityRequest(accessible_topology=where), timeout=60)
        except grpc.RpcError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()


@dataclass(frozen=True)
class Replica:
    """What the threads of a controller have: its own view of the cluster, and the lease, if it is not another's."""

    nodes: Nodes
    kube: Kube
    lease: Lease


@dataclass
class Cluster:
    """What a test has: an API, controllers, nodes."""

    api: Api
    folder: Path
    port: int = field(default_factory=free_port)
    nodes: dict[str, NodePlugin] = field(default_factory=dict)
    controllers: list[Controller] = field(default_factory=list)
    addresses: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    watching: list[Kube] = field(default_factory=list)

    def secret(self, side: str) -> dict[str, bytes]:
        """What the secret of that side holds, as soon as it is there."""

        def read() -> Any:
            try:
                return self.api.core.read_namespaced_secret(f"stillframe-tls-{side}", NAMESPACE)
            except ApiException:
                return None

        return {key: base64.b64decode(value) for key, value in wait_until(read).data.items()}

    def controller(self, *arguments: str) -> Controller:
        made = Controller(self, f"controller-{len(self.controllers)}", *arguments)
        self.controllers.append(made)
        return made.wait_ready()

    def node(self, name: str, *arguments: str) -> NodePlugin:
        """A running node; `arguments` are its engine's."""
        made = NodePlugin(self, name, f"127.0.7.{next(self.addresses)}", *arguments)
        self.nodes[name] = made
        return made.begin()

    def remove(self, name: str) -> None:
        """Take a node away, whatever became of it, with its disk, its pod and its Node object."""
        node = self.nodes.pop(name)
        node.kill()
        node.engine.clean()
        with contextlib.suppress(ApiException):
            self.api.delete_pod(f"plugin-{name}")
        with contextlib.suppress(ApiException):
            self.api.core.delete_node(name)

    def replica(self, identity: str) -> Replica:
        """One that runs in the test, beside the controllers. For its lease no time passes: it keeps it, or has it not."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(self.api.kubeconfig()))
            kube = Kube(NAMESPACE)
        view = View(kube, ",".join(f"{key}={value}" for key, value in LABELS.items()))
        self.watching.append(kube)
        view.start()
        wait_until(lambda: view.is_known)
        secret = self.secret("controller")
        shown = Certificates(secret["ca.crt"], secret["tls.crt"], secret["tls.key"])
        lease = Lease(kube, "stillframe-controller", identity, lambda: 0.0)
        lease.renew()
        return Replica(Nodes(view, lambda: shown, self.port), kube, lease)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `stillframe` as in the controller's pod."""
        return subprocess.run(
            [sys.executable, "-m", "driver.cli.main", *arguments], capture_output=True, text=True, timeout=150, check=False,
            env={**os.environ, "KUBECONFIG": str(self.api.kubeconfig())},
        )  # fmt: skip

    def age(self, snapshot: str) -> None:
        """Have the repository hear nothing of a session for longer than five minutes."""
        pending = self.folder / "repository/snapshots" / snapshot / "pending.json"
        long_ago = time.time() - 400
        os.utime(pending, (long_ago, long_ago))


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """An empty cluster; what is made in it goes with it."""
    api = api_server()
    if api is None:
        pytest.skip("there is no API server: set STILLFRAME_TESTBED to the test bed's program, or STILLFRAME_KUBE and _ETCD")
    folder = Path(tempfile.mkdtemp(prefix="stillframe-test-", dir="/var/tmp"))
    (folder / "repository").mkdir()
    (folder / "state").mkdir()
    (folder / "state/repositories.toml").write_text(f'[repositories.local]\nurl = "file://{folder}/repository"\n')
    made = Cluster(api, folder)
    try:
        yield made
    except BaseException:
        for log in (*(item.log for item in made.controllers), *(item.log for item in made.nodes.values())):
            print(f"--- {log}\n{log.read_text()[-6000:] if log.exists() else 'no log'}")
        raise
    finally:
        for kube in made.watching:
            kube.stop()
        for controller in made.controllers:
            controller.kill()
        for node in made.nodes.values():
            node.kill()
            node.engine.clean()
        api.clear()
        shutil.rmtree(folder, ignore_errors=True)
