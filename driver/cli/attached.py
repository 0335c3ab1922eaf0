"""Which volumes have their devices, as the node plugins' metrics tell it: no certificate is needed to read those."""

from __future__ import annotations

import http.client
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from driver.controller.kube import Kube

_SELECTOR: Final = "app.kubernetes.io/name=stillframe,app.kubernetes.io/component=node"
_METRIC: Final = "stillframe_volume_attached"
_PORT: Final = "metrics"
_SECONDS: Final = 5.0
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Attached:
    """The devices of the cluster: `volumes` as `NAME on NODE`; `silent` are the nodes that did not tell, with why."""

    volumes: list[str]
    silent: list[str]


def attached_in(metrics: str) -> list[str]:
    """The volumes that have a device, by a node plugin's metrics. Pure."""
    return [
        sample.labels["volume"]
        for family in text_string_to_metric_families(metrics) if family.name == _METRIC
        for sample in family.samples if sample.value
    ]  # fmt: skip


def attached(kube: Kube, namespace: str) -> Attached:
    """Ask every node plugin of the namespace, 5 s at most each. Raises KubernetesUnavailable."""
    listing = kube.every(f"/api/v1/namespaces/{namespace}/pods", labelSelector=_SELECTOR)
    pods = [pod for pod in listing if "nodeName" in pod["spec"]]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(_of, pods))
    return Attached([name for item in found for name in item.volumes], [name for item in found for name in item.silent])


def _of(pod: dict[str, Any]) -> Attached:
    node = pod["spec"]["nodeName"]
    try:
        return Attached([f"{volume} on {node}" for volume in attached_in(_metrics_of(pod))], [])
    except (OSError, http.client.HTTPException) as error:
        return Attached([], [f"{node} ({error})"])


def _metrics_of(pod: dict[str, Any]) -> str:
    address = pod["status"].get("podIP")
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    port = next((port["containerPort"] for port in ports if port.get("name") == _PORT), None)
    if not address or port is None:
        raise OSError("its pod does not run")
    host = f"[{address}]" if ":" in address else address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=_SECONDS) as answer:
        return str(answer.read().decode())
