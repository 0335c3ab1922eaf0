"""CSI's health calls (1.13): what ails volumes and the node's storage. gRPC's threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from csi import csi_pb2
from driver.core.errors import InvalidArgument, NotFound, StillframeError
from driver.node.dead import dead_volumes
from driver.node.here import Here
from driver.rpc.names import DEVICE_DEAD
from driver.rpc.paging import page

_KINDS: Final = {
    "degraded": csi_pb2.DEGRADED,
    "inaccessible": csi_pb2.INACCESSIBLE,
    "data_loss": csi_pb2.DATA_LOSS,
}


def health_of(here: Here, volume: dict[str, Any], dead: Mapping[str, Sequence[str]]) -> csi_pb2.VolumeHealth:
    """What the engine knows to be wrong with a volume; `dead` has where mounts of it lost their device. All of these are in
    the message, as a reason stands once in a volume's health: kubelet's paths tell which pods they are of."""
    entry = csi_pb2.VolumeHealth.VolumeHealthEntry
    where = ", ".join(dead.get(volume["name"], ()))
    statuses = []
    for condition in volume["conditions"]:
        text = condition["message"]
        if condition["reason"] == DEVICE_DEAD and where:
            text += f"; it is mounted at {where}"
        statuses.append(entry(status=_KINDS[condition["kind"]], reason=condition["reason"], message=text))
    if where and not any(status.reason == DEVICE_DEAD for status in statuses):
        text = f"the engine was started anew while the volume was mounted at {where}"
        statuses.append(entry(status=csi_pb2.INACCESSIBLE, reason=DEVICE_DEAD, message=text))
    return csi_pb2.VolumeHealth(volume_id=here.handle(volume["id"]), health_statuses=statuses)


def dead_of(here: Here, volumes: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Of these volumes, those that are mounted and have lost their device, with all the places."""
    given_up = [
        volume["name"] for volume in volumes
        if any(condition["reason"] == DEVICE_DEAD for condition in volume["conditions"])
    ]  # fmt: skip
    return dead_volumes(here.devices, [volume["name"] for volume in volumes], given_up)


class ControllerHealthCalls:
    """Mixin of `controller.Controller`."""

    _here: Here

    def ControllerGetVolumeHealth(  # noqa: N802
        self, request: csi_pb2.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerGetVolumeHealthResponse:
        volume = self._here.volume(request.volume_id)
        health = health_of(self._here, volume, dead_of(self._here, [volume]))
        return csi_pb2.ControllerGetVolumeHealthResponse(volume_health=health)

    def ControllerListVolumeHealth(  # noqa: N802
        self, request: csi_pb2.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerListVolumeHealthResponse:
        """The unwell ones only."""
        volumes = self._here.engine.call("volume.list")["volumes"]
        dead = dead_of(self._here, volumes)
        volumes = [volume for volume in volumes if volume["conditions"] or volume["name"] in dead]
        volumes.sort(key=lambda volume: str(volume["id"]))
        shown, token = page(volumes, lambda volume: str(volume["id"]), request.max_entries, request.starting_token)
        entries = [health_of(self._here, volume, dead) for volume in shown]
        return csi_pb2.ControllerListVolumeHealthResponse(entries=entries, next_token=token)


def storage_health(here: Here) -> list[csi_pb2.NodeGetStorageHealthResponse.StorageBackendHealth]:
    """What is wrong with the node's own storage."""
    kind = csi_pb2.NodeGetStorageHealthResponse.StorageBackendHealth
    try:
        capacity = here.engine.call("volume.capacity")
    except StillframeError as error:
        return [kind(status=csi_pb2.STORAGE_UNREACHABLE, reason="EngineDown", message=f"{error.message}; {error.hint}")]
    if capacity["available_bytes"] < capacity["volume_bytes_min"]:
        text = "the disk of the state folder is full: no volume can be made, thin ones cannot grow"
        return [kind(status=csi_pb2.STORAGE_DEGRADED, reason="DiskFull", message=text)]
    return []


def check_id(volume_id: str) -> None:
    """Raises InvalidArgument if there is none."""
    if not volume_id:
        raise InvalidArgument("the volume id is missing")


def check_volume(here: Here, volume_id: str) -> dict[str, Any]:
    """The engine's description of the volume. Raises InvalidArgument, NotFound."""
    check_id(volume_id)
    try:
        return here.volume(volume_id)
    except NotFound:
        raise NotFound(f"there is no volume {volume_id!r} on node {here.node!r}") from None
