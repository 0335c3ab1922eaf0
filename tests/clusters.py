"""A real Kubernetes API (kube-apiserver and etcd, no kubelets), and a controller plugin with node plugins on it, for tests.

Every node plugin has an address of its own on the loopback interface, as pods have; its secret is laid out as kubelet does.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from csi import csi_pb2_grpc
from tests.engines import Engine
from tests.plugins import Plugin, mount_capability
from tests.servers import find_program

__all__ = ["Api", "Cluster", "Controller", "cluster", "mount_capability", "wait_until"]
NAMESPACE = "stillframe"
LABELS = {"app.kubernetes.io/name": "stillframe", "app.kubernetes.io/component": "node"}
_TOKENS = {"admin": "system:masters", "controller": ""}
ROLE = [
    client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["list", "watch"]),
    client.V1PolicyRule(api_groups=[""], resources=["secrets", "configmaps"], verbs=["create"]),
    client.V1PolicyRule(
        api_groups=[""], resources=["secrets"], verbs=["get", "update"],
        resource_names=["stillframe-tls-controller", "stillframe-tls-node"],
    ),
    client.V1PolicyRule(
        api_groups=[""], resources=["configmaps"], verbs=["get", "update"], resource_names=["stillframe-forgotten-nodes"]
    ),
    client.V1PolicyRule(api_groups=["coordination.k8s.io"], resources=["leases"], verbs=["create"]),
    client.V1PolicyRule(
        api_groups=["coordination.k8s.io"], resources=["leases"], verbs=["get", "update"],
        resource_names=["stillframe-controller"],
    ),
]  # fmt: skip
CLUSTER_ROLE = [
    client.V1PolicyRule(api_groups=[""], resources=["nodes"], verbs=["get", "list", "watch"]),
    client.V1PolicyRule(api_groups=[""], resources=["persistentvolumes"], verbs=["list"]),
]
"""What docs/controller.md says that the controller needs; the tests give it no more."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of `what`."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class Api:
    """kube-apiserver and etcd in a folder of their own."""

    def __init__(self, kube: str, etcd: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stillframe-api-"))
        self._kube = kube
        self._etcd = etcd
        self._port = free_port()
        self._store = f"http://127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        peers = f"http://127.0.0.1:{free_port()}"
        self._spawn(
            log, self._etcd, "etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--log-level", "error",
            "--listen-client-urls", self._store, "--advertise-client-urls", self._store, "--listen-peer-urls", peers,
            "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
        )  # fmt: skip
        key = self.folder / "sa.key"
        key.write_bytes(
            rsa.generate_private_key(65537, 2048).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
        )
        tokens = self.folder / "tokens.csv"
        tokens.write_text("".join(f"token-{user},{user},{user},{group}\n" for user, group in _TOKENS.items()))
        self._server = [
            self._kube, "kube-apiserver", "--etcd-servers", self._store, "--cert-dir", str(self.folder / "pki"),
            "--bind-address", "127.0.0.1", "--secure-port", str(self._port), "--token-auth-file", str(tokens),
            "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file", str(key),
            "--service-account-signing-key-file", str(key), "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
        ]  # fmt: skip
        self._spawn(log, *self._server)
        wait_until(self._is_ready, 90)
        self.core = client.CoreV1Api(client.ApiClient(self._configuration("admin")))
        self.rbac = client.RbacAuthorizationV1Api(self.core.api_client)
        self._allow()

    def _spawn(self, log: Any, program: str, *arguments: str) -> None:
        self.processes.append(
            subprocess.Popen(arguments, executable=program, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        )

    def _configuration(self, user: str) -> client.Configuration:
        key = {"authorization": f"Bearer token-{user}"}
        made = client.Configuration(host=f"https://127.0.0.1:{self._port}", api_key=key)
        made.ssl_ca_cert = str(self.folder / "pki/apiserver.crt")
        return made

    def _is_ready(self) -> bool:
        assert all(process.poll() is None for process in self.processes), (self.folder / "log").read_text()[-4000:]
        try:
            made = client.CoreV1Api(client.ApiClient(self._configuration("admin")))
            return bool(made.read_namespace("default", _request_timeout=5))
        except (ApiException, OSError):
            return False
        except Exception:  # urllib3's own, while it starts
            return False

    def restart_server(self) -> None:
        """SIGKILL the API server, and start it again with what etcd holds."""
        server = self.processes.pop()
        server.kill()
        server.wait()
        with (self.folder / "log").open("ab") as log:
            self._spawn(log, *self._server)
        wait_until(self._is_ready, 90)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _allow(self) -> None:
        meta = client.V1ObjectMeta
        user = [client.RbacV1Subject(kind="User", name="controller", api_group="rbac.authorization.k8s.io")]
        group = "rbac.authorization.k8s.io"
        self.core.create_namespace(client.V1Namespace(metadata=meta(name=NAMESPACE)))
        self.rbac.create_namespaced_role(NAMESPACE, client.V1Role(metadata=meta(name="controller"), rules=ROLE))
        self.rbac.create_cluster_role(client.V1ClusterRole(metadata=meta(name="controller"), rules=CLUSTER_ROLE))
        role = client.V1RoleRef(kind="Role", name="controller", api_group=group)
        self.rbac.create_namespaced_role_binding(
            NAMESPACE, client.V1RoleBinding(metadata=meta(name="controller"), role_ref=role, subjects=user)
        )
        role = client.V1RoleRef(kind="ClusterRole", name="controller", api_group=group)
        self.rbac.create_cluster_role_binding(
            client.V1ClusterRoleBinding(metadata=meta(name="controller"), role_ref=role, subjects=user)
        )

    def kubeconfig(self, user: str = "controller") -> Path:
        path = self.folder / f"kubeconfig-{user}"
        authority = str(self.folder / "pki/apiserver.crt")
        server = {"server": f"https://127.0.0.1:{self._port}", "certificate-authority": authority}
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "user", "user": {"token": f"token-{user}"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        }))  # fmt: skip
        return path

    # --- what kubelets and operators do

    def put_node(self, name: str, *, ready: bool = True) -> None:
        with contextlib.suppress(ApiException):
            self.core.create_node(client.V1Node(metadata=client.V1ObjectMeta(name=name)))
        condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "Test", "message": ""}
        self.core.patch_node_status(name, {"status": {"conditions": [condition]}})

    def put_pod(self, name: str, node: str, address: str) -> None:
        container = client.V1Container(name="node", image="stillframe")
        pod = client.V1Pod(
            metadata=client.V1ObjectMeta(name=name, labels=LABELS),
            spec=client.V1PodSpec(node_name=node, containers=[container]),
        )
        self.core.create_namespaced_pod(NAMESPACE, pod)
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        self.core.patch_namespaced_pod_status(name, NAMESPACE, {"status": status})

    def delete_pod(self, name: str) -> None:
        self.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)

    def put_volume(self, name: str, handle: str) -> None:
        csi = client.V1CSIPersistentVolumeSource(driver="csi.stillframe.io", volume_handle=handle)
        spec = client.V1PersistentVolumeSpec(
            capacity={"storage": "1Gi"}, access_modes=["ReadWriteOnce"], csi=csi, storage_class_name="stillframe"
        )
        self.core.create_persistent_volume(client.V1PersistentVolume(metadata=client.V1ObjectMeta(name=name), spec=spec))

    def clear(self) -> None:
        """Remove what a test has made."""
        self.core.delete_collection_node()
        volumes: Any = self.core.list_persistent_volume()
        for item in volumes.items:
            self.core.delete_persistent_volume(item.metadata.name)
            with contextlib.suppress(ApiException):
                self.core.patch_persistent_volume(item.metadata.name, {"metadata": {"finalizers": None}})
        self.core.delete_collection_namespaced_pod(NAMESPACE, grace_period_seconds=0)
        self.core.delete_collection_namespaced_secret(NAMESPACE)
        self.core.delete_collection_namespaced_config_map(NAMESPACE)
        leases = client.CoordinationV1Api(self.core.api_client)
        leases.delete_collection_namespaced_lease(NAMESPACE)


@functools.cache
def api_server() -> Api | None:
    """One for all tests of a run."""
    kube, etcd = find_program("kube"), find_program("etcd")
    if kube is None or etcd is None:
        return None
    made = Api(kube, etcd)
    atexit.register(made.stop)
    made.start()
    return made


class NodePlugin(Plugin):
    """A node of the cluster: engine, plugin, Node object, pod."""

    def __init__(self, of: Cluster, name: str, address: str) -> None:
        engine = Engine(of.folder / name / "state", ("--node", name, "--grace", "1"))
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
        return self

    def run(self) -> None:
        """Start the plugin's process, and wait until it takes connections."""
        listen = ["--listen", f"{self.address}:{self.of.port}", "--tls", str(self.tls)]
        self.start("--node", self.name, *listen)
        wait_until(self.listens)

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
        self.channel = grpc.insecure_channel(self.endpoint, [("grpc.max_reconnect_backoff_ms", 200)])
        self.identity: Any = csi_pb2_grpc.IdentityStub(self.channel)
        self.controller: Any = csi_pb2_grpc.ControllerStub(self.channel)
        self.groups: Any = csi_pb2_grpc.GroupControllerStub(self.channel)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
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

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()


@dataclass
class Cluster:
    """What a test has: an API, controllers, nodes."""

    api: Api
    folder: Path
    port: int = field(default_factory=free_port)
    nodes: dict[str, NodePlugin] = field(default_factory=dict)
    controllers: list[Controller] = field(default_factory=list)

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

    def node(self, name: str) -> NodePlugin:
        made = NodePlugin(self, name, f"127.0.7.{len(self.nodes) + 1}")
        self.nodes[name] = made
        return made.begin()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `stillframe` as in the controller's pod."""
        return subprocess.run(
            [sys.executable, "-m", "driver.cli.main", *arguments], capture_output=True, text=True, timeout=60, check=False,
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
        for controller in made.controllers:
            controller.kill()
        for node in made.nodes.values():
            node.kill()
            node.engine.clean()
        api.clear()
        shutil.rmtree(folder, ignore_errors=True)
