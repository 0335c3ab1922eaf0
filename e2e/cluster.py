"""Kubernetes objects as stories speak of them: made, waited for, looked at. Everything is in a namespace of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError
from kubernetes.stream import stream

from e2e.machines import Machines, run

CLASS = "stillframe"
DRIVER = "csi.stillframe.io"
SYSTEM = "stillframe"
"""The release and its namespace."""
TOOLS = "docker.io/library/stillframe-e2e:dev"
"""The image of e2e/image."""

Manifest = dict[str, Any]
_VERSIONS = {
    "PersistentVolumeClaim": "v1", "PersistentVolume": "v1", "Pod": "v1", "Namespace": "v1", "Node": "v1", "Event": "v1",
    "Secret": "v1", "CSINode": "storage.k8s.io/v1", "StorageClass": "storage.k8s.io/v1",
    "CSIStorageCapacity": "storage.k8s.io/v1",
    "VolumeSnapshot": "snapshot.storage.k8s.io/v1", "VolumeSnapshotContent": "snapshot.storage.k8s.io/v1",
    "VolumeSnapshotClass": "snapshot.storage.k8s.io/v1", "DaemonSet": "apps/v1",
    "Deployment": "apps/v1", "StatefulSet": "apps/v1", "ConfigMap": "v1",
    "VolumeGroupSnapshot": "groupsnapshot.storage.k8s.io/v1beta2",
}  # fmt: skip


def until(what: Callable[[], Any], seconds: float, why: Callable[[], str]) -> Any:
    """The first true value of `what`; `why` tells what was there instead when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, why()
        time.sleep(0.3)


class Cluster:
    """The API server, and the machines below it."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self._api = config.new_client_from_config(str(machines.kubeconfig))  # type: ignore[no-untyped-call]
        self._dynamic = DynamicClient(self._api)  # type: ignore[no-untyped-call]
        self.core = client.CoreV1Api(self._api)

    def of(self, kind: str) -> Any:
        return self._dynamic.resources.get(api_version=_VERSIONS[kind], kind=kind)

    def make(self, kind: str, name: str, body: Mapping[str, Any], namespace: str | None = None) -> Manifest:
        manifest = {"apiVersion": _VERSIONS[kind], "kind": kind, **body}
        manifest["metadata"] = {"name": name, **body.get("metadata", {})}
        return dict(self.of(kind).create(body=manifest, namespace=namespace).to_dict())

    def get(self, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        with contextlib.suppress(NotFoundError):
            return dict(self.of(kind).get(name=name, namespace=namespace).to_dict())
        return None

    def every(self, kind: str, namespace: str | None = None, **selectors: str) -> list[Manifest]:
        return list(self.of(kind).get(namespace=namespace, **selectors).to_dict()["items"])

    def change(self, kind: str, name: str, body: Mapping[str, Any], namespace: str | None = None) -> None:
        """By a merge patch."""
        self.of(kind).patch(name=name, namespace=namespace, body=body, content_type="application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str | None = None, grace_seconds: int | None = None) -> None:
        options = {} if grace_seconds is None else {"body": {"gracePeriodSeconds": grace_seconds}}
        with contextlib.suppress(NotFoundError):
            self.of(kind).delete(name=name, namespace=namespace, **options)

    def wait(
        self, kind: str, name: str, ready: Callable[[Manifest], Any], seconds: float = 60, namespace: str | None = None
    ) -> Manifest:
        """The object, once it is so."""
        seen: list[Manifest | None] = []

        def look() -> Manifest | None:
            seen[:] = [self.get(kind, name, namespace)]
            return seen[0] if seen[0] is not None and ready(seen[0]) else None

        def why() -> str:
            events = [event["message"] for event in self.events(name, namespace)]
            return f"{kind} {name}: {json.dumps(seen[0] and seen[0].get('status'), default=str)}; events: {events}"

        return dict(until(look, seconds, why))

    def wait_gone(self, kind: str, name: str, seconds: float = 60, namespace: str | None = None) -> None:
        until(lambda: self.get(kind, name, namespace) is None, seconds, lambda: f"{kind} {name} is still there: "
              f"{json.dumps(self.get(kind, name, namespace), default=str)}")  # fmt: skip

    def events(self, name: str, namespace: str | None = None) -> list[Manifest]:
        """Of the object of that name."""
        found = self.every("Event", namespace, field_selector=f"involvedObject.name={name}")
        return [event for event in found if event.get("message")]

    def nodes(self) -> list[str]:
        """The names of the nodes that take pods."""
        return sorted(
            node["metadata"]["name"] for node in self.every("Node")
            if not any(taint["effect"] == "NoSchedule" for taint in node["spec"].get("taints") or ())
        )  # fmt: skip

    def pods_of(self, component: str) -> list[Manifest]:
        """Pods of the driver: engine, node or controller."""
        return self.every("Pod", SYSTEM, label_selector=f"app.kubernetes.io/component={component}")

    def pod_on(self, component: str, node: str) -> str:
        """The name of the driver's pod on a node."""
        (pod,) = (pod for pod in self.pods_of(component) if pod["spec"]["nodeName"] == node)
        return str(pod["metadata"]["name"])

    def restart(self, kind: str, name: str, namespace: str = SYSTEM) -> None:
        """A rolling restart, as `kubectl rollout restart` does it; returns when the last pod is replaced and ready."""
        at = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat()}
        self.change(kind, name, {"spec": {"template": {"metadata": {"annotations": at}}}}, namespace)
        self.rolled_out(kind, name, namespace)

    def rolled_out(self, kind: str, name: str, namespace: str = SYSTEM) -> None:
        """Wait until every pod of a Deployment or DaemonSet is of the newest template, and available."""

        def is_so(found: Manifest) -> bool:
            status = found["status"]
            if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
                return False
            if kind == "DaemonSet":
                wanted = status["desiredNumberScheduled"]
                return bool(status.get("updatedNumberScheduled") == wanted == status.get("numberAvailable"))
            wanted = found["spec"]["replicas"]
            return bool(status.get("updatedReplicas") == wanted == status.get("availableReplicas") == status["replicas"])

        self.wait(kind, name, is_so, 180, namespace)

    def run(self, namespace: str, pod: str, *command: str, container: str | None = None, seconds: float = 120) -> str:
        """What a command in a pod prints. Raises AssertionError with its output if it fails."""
        options = {"container": container} if container else {}
        answer = stream(
            self.core.connect_get_namespaced_pod_exec, pod, namespace, command=list(command), stdout=True, stderr=True,
            stdin=False, tty=False, _preload_content=False, **options,
        )  # fmt: skip
        answer.run_forever(timeout=seconds)
        output, errors = answer.read_stdout(), answer.read_stderr()
        assert not answer.is_open(), f"{command} in {pod} runs longer than {seconds} s: {output}{errors}"
        assert answer.returncode == 0, f"{command} in {pod}: {output}{errors}"
        return str(output)

    def log(self, namespace: str, pod: str, container: str | None = None) -> str:
        return str(self.core.read_namespaced_pod_log(pod, namespace, container=container))

    def helm(self, *arguments: str) -> str:
        return run("helm", *arguments, environment=self.machines.programs)

    def kubectl(self, *arguments: str) -> str:
        return run("kubectl", *arguments, environment=self.machines.programs)


class Story:
    """One story's namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._owned: list[tuple[str, str]] = []
        cluster.make("Namespace", namespace, {})

    def claim(
        self, name: str, size: str = "256Mi", *, block: bool = False, storage_class: str = CLASS,
        access: str = "ReadWriteOnce", source: tuple[str, str] | None = None, labels: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """A PersistentVolumeClaim; `source` is the kind and the name of what it is filled from."""
        spec: Manifest = {
            "storageClassName": storage_class, "accessModes": [access], "resources": {"requests": {"storage": size}},
            "volumeMode": "Block" if block else "Filesystem",
        }  # fmt: skip
        if source is not None:
            group = "snapshot.storage.k8s.io" if source[0] == "VolumeSnapshot" else ""
            spec["dataSource"] = {"apiGroup": group, "kind": source[0], "name": source[1]}
        self.make("PersistentVolumeClaim", name, {"metadata": {"name": name, "labels": labels or {}}, "spec": spec})
        return name

    def filled(self, name: str, claim: str, mebibytes: int, then: str = "sleep infinity") -> tuple[str, str]:
        """A pod that writes a file of random bytes to a claim and goes on: its node, and what `md5sum /data/file` prints."""
        fill = f"head -c {mebibytes}M /dev/urandom > /data/file; sync; md5sum /data/file"
        self.pod(name, {claim: "/data"}, f"{fill}; {then}")
        node = self.running(name)
        return node, self.wait_for_output(name).splitlines()[0]

    def pod(
        self, name: str, claims: Mapping[str, str], script: str = "sleep infinity", *, node: str | None = None,
        read_only: bool = False, volumes: Sequence[Manifest] = (),
    ) -> str:  # fmt: skip
        """A pod of the tools' image with claims at paths: those below /dev are block devices."""
        spec = self._pod_spec(claims, script, node, read_only, volumes)
        self.make("Pod", name, {"spec": {**spec, "restartPolicy": "Never"}})
        return name

    def workload(self, name: str, claims: Mapping[str, str], script: str, node: str | None = None) -> str:
        """A StatefulSet of one pod, which is made again whenever it goes; the pod's name."""
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": self._pod_spec(claims, script, node, False, ())}
        spec = {"serviceName": name, "replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        self.make("StatefulSet", name, {"spec": spec})
        return f"{name}-0"

    def _pod_spec(
        self, claims: Mapping[str, str], script: str, node: str | None, read_only: bool, volumes: Sequence[Manifest]
    ) -> Manifest:  # fmt: skip
        devices = [{"name": claim, "devicePath": path} for claim, path in claims.items() if path.startswith("/dev/")]
        mounts = [{"name": claim, "mountPath": path} for claim, path in claims.items() if not path.startswith("/dev/")]
        mounts += [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
        container = {
            "name": "main", "image": TOOLS, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-ec", script],
            "volumeDevices": devices, "volumeMounts": mounts,
        }  # fmt: skip
        spec: Manifest = {
            "containers": [container], "terminationGracePeriodSeconds": 1,
            "volumes": [
                *({"name": claim, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}} for claim in claims),
                *volumes,
            ],
        }  # fmt: skip
        if node is not None:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        return spec

    def fio(self, name: str, claim: str, node: str | None = None) -> str:
        """A pod that writes and checks what it reads until `fio_ended`, and fails at the first error."""
        script = (
            "while ! [ -e /tmp/enough ]; do fio --name=check --filename=/data/file --rw=randrw --bs=4k --size=64m "
            "--direct=1 --ioengine=libaio --iodepth=8 --rate_iops=400 --time_based --runtime=5 --verify=crc32c "
            "--verify_backlog=256 --verify_fatal=1 --output-format=terse; done"
        )
        return self.pod(name, {claim: "/data"}, script, node=node)

    def fio_ended(self, name: str) -> None:
        """Stop it; it had no error."""
        self.run(name, "touch /tmp/enough")
        self.done(name)

    def running(self, pod: str, seconds: float = 90) -> str:
        """The node of the pod, once it runs."""
        ready = self.wait("Pod", pod, lambda found: found["status"]["phase"] == "Running", seconds)
        return str(ready["spec"]["nodeName"])

    def done(self, pod: str, seconds: float = 180) -> str:
        """What the pod printed, once it has ended well."""
        ended = self.wait("Pod", pod, lambda found: found["status"]["phase"] in ("Succeeded", "Failed"), seconds)
        output = self.cluster.log(self.namespace, pod)
        assert ended["status"]["phase"] == "Succeeded", output
        return output

    def wait_for_output(self, pod: str, seconds: float = 90) -> str:
        """What a running pod has printed, once that is at least a line."""

        def look() -> str | None:
            with contextlib.suppress(ApiException):  # it has not begun
                text = self.cluster.log(self.namespace, pod)
                return text if "\n" in text else None
            return None

        return str(until(look, seconds, lambda: f"pod {pod} prints nothing: {self.get('Pod', pod)}"))

    def newest(self, pod: str) -> int:
        """The last number that a writer (e2e/image/writers) said it had made durable."""
        return int(self.cluster.log(self.namespace, pod).split()[-1])

    def snapshot(self, name: str, claim: str, snapshot_class: str = CLASS) -> str:
        """Ask for a VolumeSnapshot of a claim."""
        source = {"persistentVolumeClaimName": claim}
        self.make("VolumeSnapshot", name, {"spec": {"volumeSnapshotClassName": snapshot_class, "source": source}})
        return name

    def cut(self, snapshot: str, seconds: float = 60) -> Manifest:
        """The snapshot once it is cut; it uploads from then on."""
        return self.wait("VolumeSnapshot", snapshot, lambda found: (found.get("status") or {}).get("creationTime"), seconds)

    def complete(self, snapshot: str, seconds: float = 180) -> Manifest:
        """The snapshot once it is in the bucket."""
        return self.wait("VolumeSnapshot", snapshot, lambda found: (found.get("status") or {}).get("readyToUse"), seconds)

    def content(self, snapshot: str) -> Manifest:
        """The VolumeSnapshotContent of a snapshot that is cut."""
        name = self.cut(snapshot)["status"]["boundVolumeSnapshotContentName"]
        found = self.cluster.get("VolumeSnapshotContent", name)
        assert found is not None
        return found

    def bound(self, claim: str, seconds: float = 60) -> Manifest:
        """The PersistentVolume of a claim."""
        name = self.wait("PersistentVolumeClaim", claim, lambda found: found["status"]["phase"] == "Bound", seconds)
        volume = self.cluster.get("PersistentVolume", name["spec"]["volumeName"])
        assert volume is not None
        return volume

    def run(self, pod: str, script: str, seconds: float = 120) -> str:
        """What a shell script in the pod prints."""
        return self.cluster.run(self.namespace, pod, "sh", "-ec", script, seconds=seconds)

    def make(self, kind: str, name: str, body: Mapping[str, Any]) -> Manifest:
        return self.cluster.make(kind, name, body, self.namespace)

    def own(self, kind: str, name: str, body: Mapping[str, Any]) -> str:
        """Make an object that has no namespace; its name, which is this story's alone. It goes with the story."""
        name = f"{self.namespace}-{name}"
        self.cluster.make(kind, name, body)
        self._owned.append((kind, name))
        return name

    def get(self, kind: str, name: str) -> Manifest | None:
        return self.cluster.get(kind, name, self.namespace)

    def delete(self, kind: str, name: str, seconds: float = 60) -> None:
        """Delete it, and wait until it is gone."""
        self.cluster.delete(kind, name, self.namespace)
        self.cluster.wait_gone(kind, name, seconds, self.namespace)

    def wait(self, kind: str, name: str, ready: Callable[[Manifest], Any], seconds: float = 60) -> Manifest:
        return self.cluster.wait(kind, name, ready, seconds, self.namespace)

    def event(self, name: str, *words: str, seconds: float = 60) -> str:
        """An event's message of the object of that name which has all the words in it."""

        def look() -> str | None:
            for event in self.cluster.events(name, self.namespace):
                if all(word in event["message"] for word in words):
                    return str(event["message"])
            return None

        return str(until(look, seconds, lambda: f"no event of {name} says {words}: "
                         f"{[event['message'] for event in self.cluster.events(name, self.namespace)]}"))  # fmt: skip

    def end(self, seconds: float = 120) -> None:
        """Take everything away at once, and wait: pods hold claims, and snapshots and claims each other."""
        self._remove(("StatefulSet", "Pod", "VolumeGroupSnapshot", "VolumeSnapshot", "PersistentVolumeClaim"), seconds)
        for kind, name in self._owned:
            self.cluster.delete(kind, name)
        self.cluster.delete("Namespace", self.namespace)

    def _remove(self, kinds: Sequence[str], seconds: float) -> None:
        names = []
        for kind in kinds:
            with contextlib.suppress(ApiException, ConflictError):
                for found in self.cluster.every(kind, self.namespace):
                    names.append((kind, found["metadata"]["name"]))
                    self.cluster.delete(*names[-1], self.namespace)
        for kind, name in names:
            self.cluster.wait_gone(kind, name, seconds, self.namespace)
