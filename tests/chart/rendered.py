"""The chart as Helm renders it, for tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import find_program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/stillframe"
KUBERNETES = "1.37.0"
Manifest = dict[str, Any]

REPOSITORY = {"bucket": "bucket-b", "endpoint": "https://s3.example.com", "region": "eu-central-1", "existingSecret": "keys"}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
EVERYTHING: Manifest = {
    "image": {"repository": "example.com/stillframe", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "stateFolder": "/srv/stillframe",
    "kubeletFolder": "/var/lib/k0s/kubelet",
    "repositories": {
        "main": {**REPOSITORY, "default": True, "prefix": "cluster/one", "caBundle": CERTIFICATE},
        "second": {"bucket": "bucket-c", "accessKeyId": "AKIA", "secretAccessKey": "quiet"},
        "by-role": {"bucket": "bucket-d", "region": "us-east-1"},
    },
    "garbageCollection": {"interval": "7d"},
    "storageClasses": [
        {"name": "fast", "default": True, "fsType": "xfs", "provisioning": "thin", "logicalBlockSize": 512, "processes": 4,
         "mkfsOptions": "-m reflink=0", "reclaimPolicy": "Retain", "volumeBindingMode": "Immediate",
         "allowVolumeExpansion": False, "mountOptions": ["noatime"],
         "allowedTopologies": [{"matchLabelExpressions": [{"key": "topology.stillframe.io/node", "values": ["n"]}]}]},
        {"name": "plain"},
    ],
    "volumeSnapshotClasses": [
        {"name": "nightly", "default": True, "repository": "second", "freeze": True, "onBufferFull": "fail",
         "deletionPolicy": "Retain"},
    ],
    "groupSnapshots": {"enabled": True, "apiVersion": "v1"},
    "volumeGroupSnapshotClasses": [{"name": "groups", "repository": "main"}],
    "engine": {
        "nodeMemory": "2Gi", "sessionMemory": "512Mi", "spill": "0", "uploadRate": "10Mi", "processes": 2, "graceSeconds": 5,
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}},
        "podLabels": {"team": "storage"}, "podAnnotations": {"note": "x"}, "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "storage", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        "transfer": {"resources": {"limits": {"memory": "2Gi"}}},
    },
    "node": {"maxVolumes": 20, "debug": True, "metricsPort": 9999, "csiPort": 9811, "maxUnavailable": 1,
             "nodeSelector": {"disk": "nvme"}},
    "controller": {
        "replicas": 3, "debug": True, "podDisruptionBudget": {"maxUnavailable": "30%"},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    },
    "sidecars": {"logLevel": 5},
    "tls": {"controllerSecret": "from-cert-manager-controller", "nodeSecret": "from-cert-manager-node"},
    "monitoring": {
        "podMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
}  # fmt: skip


def helm() -> str:
    program = find_program("helm")
    if program is None:
        pytest.skip("helm is not there: install it, or set STILLFRAME_TESTBED to the test bed's program")
    return program


def run(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    """helm, with the values as a file on its standard input if there are any."""
    more = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [helm(), *arguments, *more], input=json.dumps(values or {}), capture_output=True, text=True, check=False, timeout=300
    )


def template(values: Manifest | None = None, kubernetes: str = KUBERNETES) -> list[Manifest]:
    """What `helm template` makes of the values."""
    done = run(
        "template", "stillframe", str(CHART), "--namespace", "storage", "--kube-version", kubernetes, values=values or {}
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def refusal(values: Manifest) -> str:
    """What Helm says of values that the chart does not take."""
    done = run("template", "stillframe", str(CHART), values=values)
    assert done.returncode != 0, f"{values} is taken"
    return done.stderr


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name]
    return found


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The pods that the manifests make, as (name of what makes them, pod)."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "DaemonSet", "Job"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
