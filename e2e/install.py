"""The chart, installed, upgraded and taken away as its documentation says."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from kubernetes.dynamic.exceptions import ConflictError

from e2e.cluster import DRIVER, SYSTEM, Cluster, until

CHART = Path(__file__).parents[1] / "charts/stillframe"
IMAGE = "docker.io/library/stillframe:0.1.0"
KEYS = "s3-credentials"
WRONG_KEYS = "s3-wrong-credentials"


class Release:
    """The driver in a cluster.

    Its repositories: `main`; `slow`, in the same bucket by a way that stories make slow; `locked`, with wrong keys.
    """

    def __init__(self, cluster: Cluster, bucket: str, slow_endpoint: str) -> None:
        self.cluster = cluster
        store = cluster.machines.store
        self.repositories: dict[str, dict[str, str | bool]] = {
            "main": {"bucket": bucket, "endpoint": store.endpoint, "existingSecret": KEYS, "default": True},
            "slow": {"bucket": bucket, "endpoint": slow_endpoint, "existingSecret": KEYS, "prefix": "slow"},
            "locked": {"bucket": bucket, "endpoint": store.endpoint, "existingSecret": WRONG_KEYS},
        }
        for repository in self.repositories.values():
            repository["region"] = store.region

    def prepare(self) -> None:
        """The namespace and the keys."""
        store = self.cluster.machines.store
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        with contextlib.suppress(ConflictError):
            self.cluster.make("Namespace", SYSTEM, {"metadata": {"name": SYSTEM, "labels": labels}})
        for name, secret_key in ((KEYS, store.secret_key), (WRONG_KEYS, "wrong")):
            keys = f"[default]\naws_access_key_id = {store.access_key}\naws_secret_access_key = {secret_key}\n"
            self.cluster.delete("Secret", name, SYSTEM)
            self.cluster.make("Secret", name, {"stringData": {"credentials": keys}}, SYSTEM)

    def install(self, *more: str) -> None:
        """Install, or upgrade with further arguments for Helm; returns when every node can hold volumes.

        An upgrade is not waited for: Helm 4 would wait for the engines' pods, which nobody replaces.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".json") as values:
            json.dump({"repositories": self.repositories}, values)
            values.flush()
            self.cluster.helm(
                "upgrade", "--install", SYSTEM, str(CHART), "--namespace", SYSTEM, "--timeout", "5m",
                "--values", str(Path(__file__).with_name("values.yaml")), "--values", values.name, *(more or ["--wait"]),
            )  # fmt: skip
        nodes = set(self.cluster.nodes())
        until(lambda: nodes <= set(self.drivers()), 60, lambda: f"nodes with the driver: {self.drivers()}")

    def drivers(self) -> list[str]:
        """The nodes whose kubelet knows the driver."""
        found = {
            node["metadata"]["name"]: [driver["name"] for driver in node["spec"].get("drivers") or ()]
            for node in self.cluster.every("CSINode")
        }
        return sorted(node for node, names in found.items() if DRIVER in names)

    def is_installed(self) -> bool:
        return SYSTEM in [found["name"] for found in json.loads(self.cluster.helm("list", "-A", "-o", "json"))]

    def remove(self) -> None:
        """Take the driver away. Raises CalledProcessError while pods use its volumes."""
        self.cluster.helm("uninstall", SYSTEM, "--namespace", SYSTEM, "--wait", "--timeout", "5m")
