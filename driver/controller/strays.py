"""Volumes that no PersistentVolume has: counted, and removed where the claim has got its volume on another node.

A claim that was scheduled again leaves what was begun for it on the first node. Once its PersistentVolume names another
volume, that one can go: provisioner and volumes give both the same name. All others are shown, and are an operator's to
delete. One replica does this, by a lease; the others show nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import grpc
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from csi import csi_pb2
from driver.controller import inventory
from driver.controller.inventory import Listed
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.nodes import Nodes
from driver.controller.seen import VolumeSeen
from driver.core.errors import NodeSilent, NodeUnavailable, NotFound, StillframeError
from driver.rpc import logs
from driver.rpc.names import DRIVER, engine_name, parse_handle

EVERY_SECONDS: Final = 60.0
_CALL_SECONDS: Final = 20.0


def without_pv(volumes: Sequence[Listed], known: Sequence[VolumeSeen]) -> list[Listed]:
    """Those that no PersistentVolume names. Pure."""
    used = {item.handle for item in known if item.driver == DRIVER}
    return [volume for volume in volumes if volume.handle not in used]


def left_behind(orphans: Sequence[Listed], known: Sequence[VolumeSeen]) -> list[Listed]:
    """Those whose claim has another volume. Pure."""
    served = {_name(item.name) for item in known if item.driver == DRIVER}
    return [orphan for orphan in orphans if orphan.name in served]


def _name(of: str) -> str:
    try:
        return engine_name(of)
    except StillframeError:
        return ""  # longer than a volume's name can be: none of ours


class Strays(Collector):
    """Looks every minute while it has the lease."""

    def __init__(self, nodes: Nodes, kube: Kube, lease: Lease) -> None:
        self._nodes = nodes
        self._kube = kube
        self._lease = lease
        self._before: set[str] = set()
        self._shown: list[Listed] = []

    def start(self) -> None:
        """From a thread, for ever."""
        threading.Thread(target=self._run, name="strays", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.turn()
            except StillframeError as error:
                logs.log().warning("volumes without a PersistentVolume are not known", error=error.message)
            except Exception:  # the outermost loop of a thread
                logs.log().exception("defect")
            threading.Event().wait(EVERY_SECONDS)

    def turn(self) -> None:
        """Look once, if the lease is ours. Raises KubernetesUnavailable."""
        if self._lease.is_mine:
            self._look()
        else:
            self._before, self._shown = set(), []

    def _look(self) -> None:
        """One that is being made, or was just made, has no PersistentVolume yet: only what was made a minute ago, and had
        none then either, is shown."""
        volumes = inventory.taken(self._nodes).volumes
        known = self._kube.volumes()
        orphans = without_pv(volumes, known)
        for stray in left_behind(orphans, known):
            self._remove(stray)
        self._shown = [orphan for orphan in orphans if orphan.handle in self._before]
        self._before = {orphan.handle for orphan in orphans if orphan.is_made}

    def _remove(self, stray: Listed) -> None:
        node = parse_handle("volume", stray.handle).where
        request = csi_pb2.DeleteVolumeRequest(volume_id=stray.handle)
        try:
            self._nodes.call(node, "DeleteVolume", request, _CALL_SECONDS)
        except (NodeUnavailable, NodeSilent, NotFound) as error:
            logs.log().info("a volume that a claim has left stays for now", volume=stray.handle, error=error.message)
        except grpc.RpcError as error:
            logs.log().info("a volume that a claim has left stays for now", volume=stray.handle, error=str(error))
        else:
            logs.log().info("a volume that a claim has left is removed", volume=stray.handle, name=stray.name)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is, is known at a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        orphans = GaugeMetricFamily(
            "stillframe_volume_without_pv", "Volumes that no PersistentVolume has, for a minute at least",
            labels=["node", "volume", "name"],
        )  # fmt: skip
        for orphan in self._shown:
            orphans.add_metric([parse_handle("volume", orphan.handle).where, orphan.handle, orphan.name], 1)
        yield orphans
