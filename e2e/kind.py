"""A cluster by kind (https://kind.sigs.k8s.io) with docker, and an S3 server beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from e2e.machines import Store, run
from tests.servers import ACCESS, SECRET, S3Server, find_program

CLUSTER = "stillframe-e2e"
_SNAPSHOTTER = "https://github.com/kubernetes-csi/external-snapshotter"
_VERSION = "v8.7.0"
_PORT = 9600
_GROUPS = [
    {"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--feature-gates=CSIVolumeGroupSnapshot=true"}
]


class Kind:
    """Nodes are docker containers; the store is versitygw, or else rclone, on the address of kind's bridge."""

    store: Store

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="stillframe-e2e-"))
        self._server: S3Server | None = None
        self._started = False
        self.kubeconfig = self._folder / "kubeconfig"
        self.programs = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def up(self) -> None:
        if CLUSTER not in self._kind("get", "clusters").split():
            self._kind("create", "cluster", "--config", str(Path(__file__).with_name("kind.yaml")), "--wait", "5m")
            self._started = True
        self.kubeconfig.write_text(self._kind("get", "kubeconfig", "--name", CLUSTER))
        self._server = self._serve()
        self._server.start()
        self.store = Store(self._server.endpoint, ACCESS, SECRET, "us-east-1")
        for part in ("client/config/crd", "client/config/crd-groupsnapshot", "deploy/kubernetes/snapshot-controller"):
            self._kubectl("apply", "-k", f"{_SNAPSHOTTER}/{part}?ref={_VERSION}")
        self._kubectl("patch", "deployment", "snapshot-controller", "-n", "kube-system", "--type=json", "-p",
                      json.dumps(_GROUPS))  # fmt: skip

    def _kind(self, *arguments: str) -> str:
        """With a kubeconfig of our own: the user's stays as it is."""
        return run("kind", *arguments, environment=self.programs)

    def _kubectl(self, *arguments: str) -> None:
        run("kubectl", *arguments, environment=self.programs)

    def _serve(self) -> S3Server:
        """On the bridge's address, which is the host as pods see it."""
        (network,) = json.loads(run("docker", "network", "inspect", "kind"))
        host = next(entry["Gateway"] for entry in network["IPAM"]["Config"] if "." in entry.get("Gateway", ""))
        data = self._folder / "s3"
        data.mkdir()
        program = find_program("versitygw")
        if program is not None:
            keys = ("--access", ACCESS, "--secret", SECRET)
            return S3Server((program, "--quiet", "--port", "{address}", *keys, "posix", "{root}"), data, _PORT, host=host)
        serve = ("rclone", "--config", "/dev/null", "serve", "s3", "--addr", "{address}")
        return S3Server((*serve, "--auth-key", f"{ACCESS},{SECRET}", "{root}"), data, _PORT, host=host)

    def down(self) -> None:
        self.stop_store()
        if self._started:
            self._kind("delete", "cluster", "--name", CLUSTER)
        shutil.rmtree(self._folder, ignore_errors=True)

    def build(self, image: str, folder: Path) -> None:
        run("docker", "build", "-t", image, str(folder))
        self._kind("load", "docker-image", image, "--name", CLUSTER)

    def on_node(self, node: str, *command: str) -> str:
        return run("docker", "exec", node, *command)

    def kill_node(self, node: str) -> None:
        run("docker", "kill", node)

    def start_node(self, node: str) -> None:
        run("docker", "start", node)

    def stop_store(self) -> None:
        if self._server is not None:
            self._server.stop()

    def start_store(self) -> None:
        if self._server is not None:
            self._server.start()
