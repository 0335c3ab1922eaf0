"""The chart, installed as its documentation says."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from kubernetes.dynamic.exceptions import ConflictError

from e2e.cluster import DRIVER, SYSTEM, Cluster, until

CHART = Path(__file__).parents[1] / "charts/stillframe"
IMAGE = "docker.io/library/stillframe:0.1.0"
REPOSITORY = "main"


def install(cluster: Cluster, bucket: str) -> None:
    """Namespace, keys, chart; returns when every node can hold volumes."""
    store = cluster.machines.store
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    with contextlib.suppress(ConflictError):
        cluster.make("Namespace", SYSTEM, {"metadata": {"name": SYSTEM, "labels": labels}})
    keys = f"[default]\naws_access_key_id = {store.access_key}\naws_secret_access_key = {store.secret_key}\n"
    with contextlib.suppress(ConflictError):
        cluster.make("Secret", "s3-credentials", {"stringData": {"credentials": keys}}, SYSTEM)
    repository = f"repositories.{REPOSITORY}"
    cluster.helm(
        "upgrade", "--install", SYSTEM, str(CHART), "--namespace", SYSTEM, "--wait", "--timeout", "5m",
        "--set", f"{repository}.bucket={bucket}", "--set", f"{repository}.endpoint={store.endpoint}",
        "--set", f"{repository}.region={store.region}", "--set", f"{repository}.existingSecret=s3-credentials",
        "--values", str(Path(__file__).with_name("values.yaml")),
    )  # fmt: skip
    until(lambda: drivers(cluster) == cluster.nodes(), 60, lambda: f"nodes with the driver: {drivers(cluster)}")


def drivers(cluster: Cluster) -> list[str]:
    """The nodes whose kubelet knows the driver."""
    found = {
        node["metadata"]["name"]: [driver["name"] for driver in node["spec"].get("drivers") or ()]
        for node in cluster.every("CSINode")
    }
    return sorted(node for node, names in found.items() if DRIVER in names)


def remove(cluster: Cluster) -> None:
    """Take the driver away. Raises CalledProcessError while pods use its volumes."""
    with contextlib.suppress(subprocess.CalledProcessError):
        cluster.helm("status", SYSTEM, "--namespace", SYSTEM)
        cluster.helm("uninstall", SYSTEM, "--namespace", SYSTEM, "--wait", "--timeout", "5m")
