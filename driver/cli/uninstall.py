"""`stillframe uninstall-check`: whether the driver can be taken away from a cluster without pods losing their devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import click

from driver.cli.context import Context, pass_context
from driver.controller.seen import PodClaims, VolumeSeen
from driver.core.errors import FailedPrecondition
from driver.rpc.names import DRIVER


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
@pass_context
def uninstall_check(context: Context) -> None:
    """Fail if pods of the cluster use volumes of this driver, and say which. For a pod with a service account.

    Volumes that no pod uses stay on their nodes' disks, and are found again by the next installation.
    """
    from driver.controller.kube import Kube  # takes a second, which the other commands need not wait for

    kube = Kube("default")
    found = uses(kube.volumes(), kube.pods_with_claims())
    if found:
        raise FailedPrecondition(
            f"pods use volumes of {DRIVER}, and would lose their devices: {'; '.join(map(str, found))}",
            "delete or scale down what runs these pods, then uninstall again",
        )
    context.output.result({"in_use": []}, f"no pod uses a volume of {DRIVER}")
