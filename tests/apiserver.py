"""A real Kubernetes API for tests: kube-apiserver and etcd, without kubelets; what those would write, tests write."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.servers import find_program, free_port
from tests.waiting import wait_until

NAMESPACE = "stillframe"
SNAPSHOTS = "snapshot.storage.k8s.io"
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
        resource_names=["stillframe-controller", "stillframe-controller-garbage"],
    ),
]  # fmt: skip
CLUSTER_ROLE = [
    client.V1PolicyRule(api_groups=[""], resources=["nodes"], verbs=["get", "list", "watch"]),
    client.V1PolicyRule(api_groups=[""], resources=["persistentvolumes", "persistentvolumeclaims"], verbs=["list"]),
    client.V1PolicyRule(api_groups=["snapshot.storage.k8s.io"], resources=["volumesnapshotcontents"], verbs=["list"]),
    client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["list", "delete"]),
    client.V1PolicyRule(api_groups=[""], resources=["events"], verbs=["create", "patch"]),
]
"""What docs/controller.md says that the controller needs; the tests give it no more."""


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
        wait_until(self._is_ready)
        self.core = client.CoreV1Api(client.ApiClient(self._configuration("admin")))
        self.rbac = client.RbacAuthorizationV1Api(self.core.api_client)
        self.custom = client.CustomObjectsApi(self.core.api_client)
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
        wait_until(self._is_ready)

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

    def put_volume(self, name: str, handle: str, claim: Any = None) -> None:
        csi = client.V1CSIPersistentVolumeSource(driver="csi.stillframe.io", volume_handle=handle)
        spec = client.V1PersistentVolumeSpec(
            capacity={"storage": "1Gi"}, access_modes=["ReadWriteOnce"], csi=csi, storage_class_name="stillframe"
        )
        if claim is not None:
            of = claim.metadata
            spec.claim_ref = client.V1ObjectReference(
                kind="PersistentVolumeClaim", namespace=of.namespace, name=of.name, uid=of.uid
            )
        self.core.create_persistent_volume(client.V1PersistentVolume(metadata=client.V1ObjectMeta(name=name), spec=spec))

    def put_claim(self, name: str, namespace: str = NAMESPACE) -> Any:
        resources = client.V1VolumeResourceRequirements(requests={"storage": "1Gi"})
        spec = client.V1PersistentVolumeClaimSpec(
            access_modes=["ReadWriteOnce"], resources=resources, storage_class_name="stillframe"
        )
        claim = client.V1PersistentVolumeClaim(metadata=client.V1ObjectMeta(name=name), spec=spec)
        return self.core.create_namespaced_persistent_volume_claim(namespace, claim)

    def has_snapshots(self) -> bool:
        """Make the cluster know VolumeSnapshots. False where their definitions are not at hand."""
        made = client.ApiextensionsV1Api(self.core.api_client)
        for plural in ("volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"):
            path = find_program(f"{SNAPSHOTS}_{plural}.yaml")
            if path is None:
                return False
            with contextlib.suppress(ApiException):
                made.create_custom_resource_definition(yaml.safe_load(Path(path).read_text()))
            wait_until(functools.partial(self._is_served, plural))
        return True

    def _is_served(self, plural: str) -> bool:
        try:
            self.custom.list_cluster_custom_object(SNAPSHOTS, "v1", plural)
        except ApiException:
            return False
        return True

    def put_snapshot(self, name: str, claim: str, handle: str, volume: str, namespace: str = NAMESPACE) -> str:
        """A VolumeSnapshot and its content, as the snapshot controller and the snapshotter leave them after the cut; its
        uid."""
        version, made_as = f"{SNAPSHOTS}/v1", (SNAPSHOTS, "v1")
        body = {
            "apiVersion": version, "kind": "VolumeSnapshot", "metadata": {"name": name},
            "spec": {"source": {"persistentVolumeClaimName": claim}},
        }  # fmt: skip
        made: Any = self.custom.create_namespaced_custom_object(*made_as, namespace, "volumesnapshots", body)
        uid = str(made["metadata"]["uid"])
        content = f"snapcontent-{uid}"
        spec = {
            "driver": "csi.stillframe.io", "deletionPolicy": "Delete", "source": {"volumeHandle": volume},
            "volumeSnapshotRef": {"namespace": namespace, "name": name, "uid": uid},
        }  # fmt: skip
        body = {"apiVersion": version, "kind": "VolumeSnapshotContent", "metadata": {"name": content}, "spec": spec}
        self.custom.create_cluster_custom_object(*made_as, "volumesnapshotcontents", body)
        status = {"status": {"snapshotHandle": handle, "readyToUse": False}}
        self.custom.patch_cluster_custom_object_status(*made_as, "volumesnapshotcontents", content, status)
        status = {"status": {"boundVolumeSnapshotContentName": content, "readyToUse": False}}
        self.custom.patch_namespaced_custom_object_status(*made_as, namespace, "volumesnapshots", name, status)
        return uid

    def events(self, kind: str, name: str) -> dict[str, Any]:
        """By reason, the events of an object in our namespace."""
        found: Any = self.core.list_namespaced_event(NAMESPACE)
        return {item.reason: item for item in found.items
                if (item.involved_object.kind, item.involved_object.name) == (kind, name)}  # fmt: skip

    def clear(self) -> None:
        """Remove what a test has made."""
        self.core.delete_collection_node()
        volumes: Any = self.core.list_persistent_volume()
        for item in volumes.items:
            self.core.delete_persistent_volume(item.metadata.name)
            with contextlib.suppress(ApiException):
                self.core.patch_persistent_volume(item.metadata.name, {"metadata": {"finalizers": None}})
        self.core.delete_collection_namespaced_pod(NAMESPACE, grace_period_seconds=0)
        claims: Any = self.core.list_namespaced_persistent_volume_claim(NAMESPACE)
        for item in claims.items:
            self.core.delete_namespaced_persistent_volume_claim(item.metadata.name, NAMESPACE)
            with contextlib.suppress(ApiException):
                patch = {"metadata": {"finalizers": None}}
                self.core.patch_namespaced_persistent_volume_claim(item.metadata.name, NAMESPACE, patch)
        self.core.delete_collection_namespaced_event(NAMESPACE)
        if self._is_served("volumesnapshotcontents"):
            self.custom.delete_collection_namespaced_custom_object(SNAPSHOTS, "v1", NAMESPACE, "volumesnapshots")
            self.custom.delete_collection_cluster_custom_object(SNAPSHOTS, "v1", "volumesnapshotcontents")
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
