"""`stillframe uninstall-check`: whether the driver can be taken away from a cluster without pods losing their devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import click

from driver.cli.context import Context, pass_context
from driver.core.errors import FailedPrecondition, NotPermitted, RepositoryUnavailable, Unsupported
from driver.node.names import DRIVER

_RUNNING: Final = "status.phase!=Succeeded,status.phase!=Failed"
_SECONDS: Final = 30.0


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


def uses(volumes: Iterable[Any], pods: Iterable[Any]) -> list[Use]:
    """Which of this driver's PersistentVolumes are used by pods that have a node. Pure; objects of Kubernetes' API."""
    claims = {
        (volume.spec.claim_ref.namespace, volume.spec.claim_ref.name): volume.metadata.name
        for volume in volumes
        if volume.spec.csi is not None and volume.spec.csi.driver == DRIVER and volume.spec.claim_ref is not None
    }
    found = []
    for pod in pods:
        for claim in _claims(pod) if pod.spec.node_name else ():
            volume = claims.get((pod.metadata.namespace, claim))
            if volume is not None:
                found.append(Use(pod.metadata.namespace, claim, volume, pod.metadata.name, pod.spec.node_name))
    return sorted(found, key=lambda use: (use.namespace, use.claim, use.pod))


def _claims(pod: Any) -> Iterable[str]:
    """The pod's claims by name, those of generic ephemeral volumes too: they have the pod's and the volume's name."""
    for volume in pod.spec.volumes or ():
        if volume.persistent_volume_claim is not None:
            yield volume.persistent_volume_claim.claim_name
        elif volume.ephemeral is not None:
            yield f"{pod.metadata.name}-{volume.name}"


@click.command("uninstall-check")
@pass_context
def uninstall_check(context: Context) -> None:
    """Fail if pods of the cluster use volumes of this driver, and say which. For a pod with a service account.

    Volumes that no pod uses stay on their nodes' disks, and are found again by the next installation.
    """
    from kubernetes import client, config  # takes a second, which the other commands need not wait for
    from urllib3.exceptions import HTTPError

    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise Unsupported(f"this is no pod with a service account: {error}", "helm uninstall runs this in one") from None
    core = client.CoreV1Api()
    try:
        volumes = core.list_persistent_volume(_request_timeout=_SECONDS).items
        pods = core.list_pod_for_all_namespaces(field_selector=_RUNNING, _request_timeout=_SECONDS).items
    except client.ApiException as error:
        raise NotPermitted(f"the API server answers {error.status} {error.reason}", "look at the ClusterRole") from None
    except HTTPError as error:
        raise RepositoryUnavailable(f"the API server does not answer: {error}", "try again") from None
    found = uses(volumes, pods)
    if found:
        raise FailedPrecondition(
            f"pods use volumes of {DRIVER}, and would lose their devices: {'; '.join(map(str, found))}",
            "delete or scale down what runs these pods, then uninstall again",
        )
    context.output.result({"in_use": []}, f"no pod uses a volume of {DRIVER}")
