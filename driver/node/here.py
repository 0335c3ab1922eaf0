"""What every call needs: this node's name, its engine, what is in hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from csi import csi_pb2
from driver.core.client import Client, Result
from driver.core.errors import EngineUnavailable, NotFound, StillframeError
from driver.rpc.names import TOPOLOGY_KEY, Handle, parse_handle
from driver.rpc.operations import Operations

LOST_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = 3.0
"""Less than those who ask for readiness wait: kubelet 5 s (the chart's probes)."""
_FIX: Final = (
    "look at the engine's pod of that node: kubectl get pods -A -l app.kubernetes.io/component=engine -o wide; "
    "without Kubernetes, start it as root: stillframe engine run"
)


class NodeEngine(Client):
    """The engine of `node`, and for how long it has been away: health checks `probe` it every few seconds. Any thread."""

    def __init__(self, state: Path, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(state)
        self._node = node
        self._clock = clock
        self._away_since: float | None = None

    @property
    def is_lost(self) -> bool:
        """Whether it has been away for a minute: nobody should wait for it."""
        since = self._away_since
        return since is not None and self._clock() - since >= LOST_SECONDS

    def call(self, call: str, fds: Sequence[int] = (), **arguments: Any) -> Result:
        """As `Client.call`; EngineUnavailable says whose engine it is, for those who read it far from the node."""
        with self._noted():
            return super().call(call, fds, **arguments)

    def probe(self) -> None:
        """Raises what a call raises, EngineUnavailable after 3 s of silence."""
        with self._noted():
            Client(self.state, _PROBE_SECONDS).call("engine.info")

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        is_away = False
        try:
            yield
        except EngineUnavailable as error:
            is_away = True
            raise EngineUnavailable(f"node {self._node!r}: {error.message}", _FIX) from error
        finally:
            self._away_since = (self._away_since or self._clock()) if is_away else None


@dataclass(frozen=True, slots=True)
class Here:
    """One node. `engine` may be down; calls to it raise EngineUnavailable then."""

    node: str
    engine: NodeEngine
    operations: Operations = field(default_factory=Operations)

    @property
    def devices(self) -> str:
        """The folder of the engine's device nodes."""
        return f"{self.engine.state}/dev"

    def why_not(self) -> str | None:
        """Why this node cannot work; None if its engine answers within 3 s."""
        try:
            self.engine.probe()
        except StillframeError as error:
            return error.message
        return None

    def topology(self) -> csi_pb2.Topology:
        """Where this node's volumes can be used."""
        return csi_pb2.Topology(segments={TOPOLOGY_KEY: self.node})

    def is_at(self, topology: csi_pb2.Topology) -> bool:
        """Whether a topology means this node, or says nothing of nodes."""
        return topology.segments.get(TOPOLOGY_KEY, self.node) == self.node

    def handle(self, volume_id: str) -> str:
        """The handle of a volume of this node."""
        return str(Handle(self.node, volume_id))

    def parse(self, volume_handle: str) -> str:
        """The engine's id of a volume of this node. Raises InvalidArgument, NotFound."""
        handle = parse_handle("volume", volume_handle)
        if handle.where != self.node:
            raise NotFound(f"volume {volume_handle!r} is on node {handle.where!r}, not on {self.node!r}")
        return handle.id

    def volume(self, volume_handle: str) -> dict[str, Any]:
        """What the engine says of a volume. Raises InvalidArgument, NotFound, EngineUnavailable."""
        return self.engine.call("volume.show", name=self.parse(volume_handle))
