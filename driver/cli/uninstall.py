"""`stillframe uninstall-check`: whether the driver can be taken away from a cluster without pods losing their devices, and
without mounts that nobody can take down any more."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import click

from driver.cli.context import DURATION, Context, pass_context
from driver.controller.seen import PodClaims, VolumeSeen
from driver.core import settings
from driver.core.errors import FailedPrecondition
from driver.rpc.names import DRIVER

_AGAIN_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Use:
    """A volume that a pod on a node uses."""

    namespace: str
    claim: str
    volume: str
    pod: str
    node: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.claim} (volume {self.volume}) by pod {self.pod} on {self.node}"


def uses(volumes: Iterable[VolumeSeen], pods: Iterable[PodClaims]) -> list[Use]:
    """Which of this driver's PersistentVolumes are used by pods that have a node. Pure."""
    claims = {volume.claim: volume.name for volume in volumes if volume.driver == DRIVER and volume.claim is not None}
    found = [
        Use(pod.namespace, claim, claims[pod.namespace, claim], pod.name, pod.node)
        for pod in pods
        for claim in pod.claims
        if (pod.namespace, claim) in claims
    ]
    return sorted(found, key=lambda use: (use.namespace, use.claim, use.pod))


@click.command("uninstall-check")
@click.option("--namespace", default=settings.own_namespace, show_default="the pod's own, or default",
              help="Of the node plugins.")  # fmt: skip
@click.option("--wait", "wait_seconds", type=DURATION, default="1m", show_default=True,
              help="For kubelet to take down what ended pods had mounted.")  # fmt: skip
@pass_context
def uninstall_check(context: Context, namespace: str, wait_seconds: int) -> None:
    """Fail if pods of the cluster use volumes of this driver, or volumes have their devices, and say which. For a pod with a
    service account.

    Volumes that no pod uses stay on their nodes' disks, and are found again by the next installation.
    """
    from driver.cli.attached import attached  # the kubernetes package takes a second, for which other commands need not wait
    from driver.controller.kube import Kube

    kube = Kube(namespace)
    found = uses(kube.volumes(), kube.pods_with_claims())
    if found:
        raise FailedPrecondition(
            f"pods use volumes of {DRIVER}, and would lose their devices: {'; '.join(map(str, found))}",
            "delete or scale down what runs these pods, then uninstall again",
        )
    deadline = time.monotonic() + wait_seconds
    while (held := attached(kube, namespace)).volumes:
        if time.monotonic() >= deadline:
            raise FailedPrecondition(
                f"no pod uses them, and volumes still have their devices: {', '.join(held.volumes)}",
                "kubelet takes them down once a pod is gone, also one deleted by force: uninstall again in a while. What "
                "nobody has mounted: stillframe volume detach NAME, in the engine's pod of that node",
            )
        time.sleep(_AGAIN_SECONDS)
    if held.silent:
        context.output.line(f"not known: the devices of {', '.join(held.silent)}")
    context.output.result({"in_use": [], "not_asked": held.silent}, f"no pod uses a volume of {DRIVER}")
