"""Pods whose volume lost its device: they are told by an event, and those that somebody makes again are deleted.

An engine that was started anew has no device for who had one: the file system stays dead until its pod is made again, which
no workload does by itself for an I/O error. One replica looks, by the lease.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from csi import csi_pb2
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.nodes import Nodes
from driver.controller.seen import PodClaims, VolumeSeen
from driver.core.errors import KubernetesUnavailable, StillframeError
from driver.rpc import logs
from driver.rpc.names import DEVICE_DEAD, DRIVER, node_id, parse_handle

EVERY_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 20.0
_AGAIN_SECONDS: Final = 600.0
"""Who is still there then is told again."""
REASON: Final = "VolumeDeviceDead"


@dataclass(frozen=True, slots=True)
class Victim:
    """A pod, and the volume that it cannot use any more."""

    pod: PodClaims
    volume: VolumeSeen
    why: str


def dead(entries: Iterable[csi_pb2.VolumeHealth]) -> dict[str, str]:
    """By handle, what a node says of the volumes whose device is dead, and where they are mounted. Pure."""
    return {
        entry.volume_id: status.message
        for entry in entries
        for status in entry.health_statuses
        if status.reason == DEVICE_DEAD
    }


def victims(found: dict[str, str], volumes: Sequence[VolumeSeen], pods: Sequence[PodClaims]) -> list[Victim]:
    """The pods that have such a volume mounted where its device is dead: kubelet's paths have the pod's uid. Another pod of
    the same claim may have been given the new device, and one that is being deleted needs no help. Pure."""
    hurt = {
        volume.claim: volume
        for volume in volumes
        if volume.driver == DRIVER and volume.handle in found and volume.claim is not None
    }
    return [
        Victim(pod, volume, found[volume.handle])
        for pod in pods
        for claim in pod.claims
        if not pod.is_ending and (volume := hurt.get((pod.namespace, claim))) is not None
        and parse_handle("volume", volume.handle).where == node_id(pod.node) and pod.uid in found[volume.handle]
    ]  # fmt: skip


class Revive:
    """Looks every ten seconds while it has the lease. `remake`: whether pods with an owner are deleted."""

    def __init__(self, nodes: Nodes, kube: Kube, lease: Lease, *, remake: bool) -> None:
        self._nodes = nodes
        self._kube = kube
        self._lease = lease
        self._remake = remake
        self._told: dict[tuple[str, str], float] = {}  # by the pod's uid and the volume's handle, when

    def start(self) -> None:
        """From a thread, for ever."""
        threading.Thread(target=self._run, name="revive", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.turn()
            except StillframeError as error:
                logs.log().warning("pods with dead volumes are not known", error=error.message)
            except Exception:  # the outermost loop of a thread
                logs.log().exception("defect")
            threading.Event().wait(EVERY_SECONDS)

    def turn(self) -> None:
        """Look once, if the lease is ours. Raises KubernetesUnavailable."""
        if not self._lease.is_mine:
            self._told.clear()
            return
        found = self._dead()
        if not found:
            return
        now = time.monotonic()
        self._told = {key: at for key, at in self._told.items() if now - at < _AGAIN_SECONDS}
        for victim in victims(found, self._kube.volumes(), self._kube.pods_with_claims()):
            self._help(victim, now)

    def _help(self, victim: Victim, now: float) -> None:
        """Tell once in a while, and delete until that has succeeded: what fails for one is tried again at the next look."""
        pod, key = victim.pod, (victim.pod.uid, victim.volume.handle)
        is_remade = self._remake and pod.has_owner
        if key not in self._told:
            with _left_for_later(pod):
                self._tell(victim, is_remade=is_remade)
                self._told[key] = now
        if is_remade:
            with _left_for_later(pod):
                self._kube.delete_pod(pod.namespace, pod.name, pod.uid)

    def _dead(self) -> dict[str, str]:
        """Of the nodes that can be asked."""
        request = csi_pb2.ControllerListVolumeHealthRequest()
        answers = self._nodes.ask_all(self._nodes.ready(), "ControllerListVolumeHealth", request, _CALL_SECONDS)
        return dead(entry for answer in answers.values() for entry in answer.entries)

    def _tell(self, victim: Victim, *, is_remade: bool) -> None:
        pod, claim = victim.pod, victim.volume.claim
        fix = "the pod is deleted, so that its owner makes it again" if is_remade else "delete the pod, and make it again"
        text = f"volume {victim.volume.name} of claim {claim[1] if claim else ''} lost its device; {fix}: {victim.why}"
        logs.log().warning("a pod's volume lost its device", pod=f"{pod.namespace}/{pod.name}", volume=victim.volume.handle,
                           deleted=is_remade)  # fmt: skip
        self._kube.warn("Pod", pod.namespace, pod.name, pod.uid, REASON, text)
        if claim is not None:
            told = f"pod {pod.name} lost this volume's device: {victim.why}"
            self._kube.warn("PersistentVolumeClaim", claim[0], claim[1], victim.volume.claim_uid, REASON, told)


@contextlib.contextmanager
def _left_for_later(pod: PodClaims) -> Iterator[None]:
    try:
        yield
    except KubernetesUnavailable as error:
        logs.log().warning("a pod with a dead volume waits for help", pod=f"{pod.namespace}/{pod.name}", error=error.message)
