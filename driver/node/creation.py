"""CreateVolume's work: find the volume of a name or make it, from nothing, from a snapshot or from another volume.

What takes long is a job of the engine and belongs to the volume's name: a call that runs out of time, or is cancelled, stops
only its waiting; the next one finds the volume `restoring` and waits on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc

from csi import csi_pb2
from driver.core.errors import AlreadyExists, Busy, Internal, InvalidArgument, NotFound, OutOfRange, StillframeError
from driver.core.sizes import format_size
from driver.node.here import Here
from driver.rpc import capabilities
from driver.rpc.deadlines import time_left, wait
from driver.rpc.described import DELETED
from driver.rpc.names import parse_handle
from driver.rpc.parameters import VolumeParameters

_POLL_SECONDS: Final = (0.05, 1.0)
"""At first, for what is made at once; then ever more seldom, as the engine serves the node's block devices too."""
_Capabilities = Sequence[csi_pb2.VolumeCapability]


class Creation:
    """Finds or makes volumes of one node."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def volume(
        self, name: str, request: csi_pb2.CreateVolumeRequest, possible: _Capabilities, given: VolumeParameters,
        context: grpc.ServicerContext,
    ) -> dict[str, Any]:  # fmt: skip
        """The engine's description of the volume, available.

        Raises AlreadyExists, OutOfRange, OutOfSpace, NotFound (the source), Busy when the time is up before it is made.
        """
        capabilities.check_range(request.capacity_range)
        source = request.volume_content_source
        if request.HasField("volume_content_source") and source.WhichOneof("type") is None:
            raise InvalidArgument("the volume's content source says neither snapshot nor volume")
        try:
            known = self._here.engine.call("volume.show", name=name)
        except NotFound:
            known = self._make(name, request.capacity_range, possible, source, given, context)
        self._check(known, name, request, given)
        return self._available(known, context)

    def _make(
        self, name: str, capacity: csi_pb2.CapacityRange, possible: _Capabilities, source: csi_pb2.VolumeContentSource,
        given: VolumeParameters, context: grpc.ServicerContext,
    ) -> dict[str, Any]:  # fmt: skip
        engine = self._here.engine
        match source.WhichOneof("type"):
            case "snapshot":
                handle = parse_handle("snapshot", source.snapshot.snapshot_id)
                found = engine.call("snapshot.show", snapshot=str(handle), seconds=time_left(context))
                if found["state"] == DELETED:
                    raise NotFound(f"snapshot {str(handle)!r} was deleted", "restore another: stillframe snapshot list")
                size_bytes = self._size(capacity, possible, found["size_bytes"])
                made = engine.call(
                    "snapshot.restore", snapshot=str(handle), volume=name, size_bytes=size_bytes,
                    provisioning=given.provisioning, processes=given.processes, seconds=time_left(context),
                )  # fmt: skip
                return dict(made["volume"])
            case "volume":
                of = self._here.volume(source.volume.volume_id)
                size_bytes = self._size(capacity, possible, of["size_bytes"])
                return engine.call(
                    "volume.clone", source=of["id"], name=name, size_bytes=size_bytes, provisioning=given.provisioning,
                    processes=given.processes,
                )  # fmt: skip
            case _:
                return engine.call(
                    "volume.create", name=name, size_bytes=capabilities.size_for(capacity, possible),
                    provisioning=given.provisioning, logical_block_size=given.logical_block_size,
                    processes=given.processes,
                )  # fmt: skip

    @staticmethod
    def _size(capacity: csi_pb2.CapacityRange, possible: _Capabilities, source_bytes: int) -> int:
        if 0 < capacity.limit_bytes < source_bytes:
            raise OutOfRange(
                f"the source has {format_size(source_bytes)}, more than the limit of {format_size(capacity.limit_bytes)}"
            )
        return capabilities.size_for(capacity, possible, least_bytes=source_bytes)

    def _check(
        self, known: dict[str, Any], name: str, request: csi_pb2.CreateVolumeRequest, given: VolumeParameters
    ) -> None:
        """Raises AlreadyExists if the volume that has the name is not what is asked for."""
        source = request.volume_content_source
        snapshot = volume = None
        match source.WhichOneof("type"):
            case "snapshot":
                snapshot = source.snapshot.snapshot_id
            case "volume":
                volume = self._here.parse(source.volume.volume_id)
        differences = [
            (not capabilities.fits(known["size_bytes"], request.capacity_range), f"with {format_size(known['size_bytes'])}"),
            (known["provisioning"] != given.provisioning, f"{known['provisioning']}"),
            (known["source_snapshot"] != snapshot, f"made from snapshot {known['source_snapshot']}"),
            (known["source_volume"] != volume, f"cloned from volume {known['source_volume']}"),
        ]
        for differs, how in differences:
            if differs:
                raise AlreadyExists(f"volume {name!r} exists, {how}", "take another name, or delete it first")

    def _available(self, volume: dict[str, Any], context: grpc.ServicerContext) -> dict[str, Any]:
        """Wait until the volume is made. Raises Busy when the call's time is up, and what the making failed with."""
        pause, longest = _POLL_SECONDS
        while volume["state"] != "available":
            if not wait(context, pause) or time_left(context) <= 0:
                raise Busy(f"volume {volume['name']!r} is being made; that goes on")
            pause = min(2 * pause, longest)
            job = volume["restore_job"]
            try:
                volume = self._here.engine.call("volume.show", name=volume["id"])
            except NotFound:
                raise self._reason(volume["name"], job) from None
        return volume

    def _reason(self, name: str, job: str | None) -> StillframeError:
        """Why a volume that was being made is gone."""
        if job:
            try:
                status = self._here.engine.call("job.status", job=job)
            except StillframeError:
                status = {"error": None}
            if status["error"]:
                return StillframeError.from_message(status["error"])
        return Internal(f"making volume {name!r} failed", "the engine's log says why; it is tried again at the next call")
