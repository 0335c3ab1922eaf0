"""What Kubernetes says of the nodes: which exist, which are ready, where their plugins are. Any thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from driver.controller.kube import Kube
from driver.controller.seen import NodeSeen, PodSeen, node_seen, pod_seen
from driver.rpc.names import node_id

DELETED: Final = "DELETED"


class State(Enum):
    """What can be expected of a node."""

    READY = "is Ready"
    NOT_READY = "is NotReady"
    NO_PLUGIN = "runs no node plugin"
    ABSENT = "has no Node object"


@dataclass(frozen=True, slots=True)
class Place:
    """A node by its name in handles. `address` is there only if it is READY; `name` is None for one never seen."""

    id: str
    name: str | None
    state: State
    address: str | None = None

    def __str__(self) -> str:
        return repr(self.name or self.id)


class Cluster:
    """Follows the Node objects and the node plugins' pods. What was last known holds while the API is away."""

    def __init__(self, kube: Kube, selector: str) -> None:
        self._kube = kube
        self._selector = selector
        self._lock = threading.Lock()  # guards the three below
        self._pods: dict[str, PodSeen] = {}
        self._nodes: dict[str, NodeSeen] = {}
        self._listed: set[str] = set()

    def start(self) -> None:
        """Returns at once; `is_known` is true when both were listed."""
        self._kube.watch_nodes(self._on_nodes, self._on_node)
        self._kube.watch_pods(self._selector, self._on_pods, self._on_pod)

    @property
    def is_known(self) -> bool:
        with self._lock:
            return len(self._listed) == 2

    def find(self, node: str) -> Place:
        """The node of that name in handles."""
        with self._lock:
            known = self._nodes.get(node)
            if known is None:
                return Place(node, None, State.ABSENT)
            if not known.ready:
                return Place(node, known.name, State.NOT_READY)
            pods = [pod for pod in self._pods.values() if pod.node == known.name and pod.address is not None]
        if not pods:
            return Place(node, known.name, State.NO_PLUGIN)
        return Place(node, known.name, State.READY, max(pods, key=lambda pod: pod.begun).address)

    def all(self) -> list[Place]:
        """Every node that has a Node object, or a plugin's pod."""
        with self._lock:
            known = {*self._nodes, *(node_id(pod.node) for pod in self._pods.values())}
        return [self.find(node) for node in sorted(known)]

    def with_plugins(self) -> list[str]:
        """The nodes that have a plugin's pod, whatever its state, in the order of their names in handles."""
        with self._lock:
            return sorted({node_id(pod.node) for pod in self._pods.values()})

    def _on_nodes(self, found: list[Any]) -> None:
        with self._lock:
            self._nodes = {node_id(node.metadata.name): node_seen(node) for node in found}
            self._listed.add("nodes")

    def _on_node(self, what: str, node: Any) -> None:
        with self._lock:
            self._nodes.pop(node_id(node.metadata.name), None)
            if what != DELETED:
                self._nodes[node_id(node.metadata.name)] = node_seen(node)

    def _on_pods(self, found: list[Any]) -> None:
        seen = [pod for pod in map(pod_seen, found) if pod is not None]
        with self._lock:
            self._pods = {pod.name: pod for pod in seen}
            self._listed.add("pods")

    def _on_pod(self, what: str, pod: Any) -> None:
        seen = pod_seen(pod) if what != DELETED else None
        with self._lock:
            self._pods.pop(pod.metadata.name, None)
            if seen is not None:
                self._pods[seen.name] = seen
