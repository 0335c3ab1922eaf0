"""What the controller takes of the API's objects: small frozen things, without the `kubernetes` package. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Held:
    """What an object holds, and its version."""

    content: dict[str, bytes]
    version: str


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """A Lease object; `holder` is empty if nobody has it."""

    holder: str
    lasts_seconds: int
    version: str
    renewed: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod of a node plugin. `address` is None until it runs."""

    name: str
    node: str
    address: str | None
    begun: datetime


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A Node object."""

    name: str
    ready: bool


@dataclass(frozen=True, slots=True)
class VolumeSeen:
    """A PersistentVolume of a CSI driver; the namespace and the name of the claim it is bound to, if it is."""

    name: str
    driver: str
    handle: str
    claim: tuple[str, str] | None = None
    claim_uid: str = ""


@dataclass(frozen=True, slots=True)
class PodClaims:
    """A pod that has a node and has not ended, and the names of the claims in its namespace that it uses.

    `is_ending`: somebody has deleted it, and it is not gone yet. `has_owner`: a controller (ReplicaSet, StatefulSet, Job, …)
    makes it again when it is deleted.
    """

    namespace: str
    name: str
    node: str
    claims: tuple[str, ...]
    uid: str
    is_ending: bool
    has_owner: bool


def pod_seen(pod: Any) -> PodSeen | None:
    """None for one that has no node yet, or has ended."""
    if not pod.spec.node_name or pod.status.phase in ("Succeeded", "Failed"):
        return None
    runs = pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None
    return PodSeen(
        pod.metadata.name, pod.spec.node_name, pod.status.pod_ip if runs else None, pod.metadata.creation_timestamp
    )


def node_seen(node: Any) -> NodeSeen:
    """Ready is what the Ready condition says; Unknown is not."""
    conditions = (node.status.conditions if node.status else None) or []
    return NodeSeen(node.metadata.name, any(item.type == "Ready" and item.status == "True" for item in conditions))


def volume_seen(volume: Any) -> VolumeSeen | None:
    """None for one that is of no CSI driver."""
    if volume.spec.csi is None:
        return None
    bound = volume.spec.claim_ref
    claim, uid = ((bound.namespace, bound.name), bound.uid or "") if bound is not None else (None, "")
    return VolumeSeen(volume.metadata.name, volume.spec.csi.driver, volume.spec.csi.volume_handle, claim, uid)


def pod_claims(pod: Any) -> PodClaims | None:
    """None for one that has no node yet. Generic ephemeral volumes have claims of the pod's and the volume's name."""
    if not pod.spec.node_name:
        return None
    claims = []
    for volume in pod.spec.volumes or ():
        if volume.persistent_volume_claim is not None:
            claims.append(volume.persistent_volume_claim.claim_name)
        elif volume.ephemeral is not None:
            claims.append(f"{pod.metadata.name}-{volume.name}")
    metadata = pod.metadata
    has_owner = any(owner.controller for owner in metadata.owner_references or ())
    is_ending = metadata.deletion_timestamp is not None
    return PodClaims(
        metadata.namespace, metadata.name, pod.spec.node_name, tuple(claims), metadata.uid or "", is_ending, has_owner
    )
