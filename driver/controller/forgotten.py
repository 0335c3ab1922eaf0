"""Nodes that are gone for good, by an operator's word: their volumes are gone with them. Any thread.

Kept as the keys of a config map: the node's name in handles, with the time. A word counts only as long as there is no Node
object of that name: a machine that comes back under it is asked again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from driver.controller.kube import Kube
from driver.core.errors import FailedPrecondition
from driver.rpc.names import node_id

CONFIG_MAP: Final = "stillframe-forgotten-nodes"


class Forgotten:
    """Raises KubernetesUnavailable."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def add(self, name: str) -> None:
        """Forget a node, by its Kubernetes name. Raises FailedPrecondition while its Node object exists."""
        if self._kube.node_exists(name):
            raise FailedPrecondition(
                f"node {name!r} exists: its volumes may be in use",
                f"if it is gone for good, delete it first: kubectl delete node {name}",
            )
        while True:
            held = self._kube.config_map(CONFIG_MAP)
            content = {**(held.content if held is not None else {}), node_id(name): datetime.now(UTC).isoformat().encode()}
            if self._kube.put_config_map(CONFIG_MAP, content, held.version if held is not None else None):
                return

    def has(self, node: str) -> bool:
        """Whether a node was forgotten, by its name in handles. The caller knows that it has no Node object."""
        held = self._kube.config_map(CONFIG_MAP)
        return held is not None and node in held.content
