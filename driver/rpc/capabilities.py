"""What the driver can do, how volumes of it may be used, and the sizes that they may have. Pure: messages in, decisions
out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from csi import csi_pb2
from driver.core.errors import InvalidArgument, OutOfRange, StillframeError
from driver.core.sizes import GIB, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, format_size, volume_size
from driver.host.superblocks import FILE_SYSTEMS, XFS_BYTES_MIN

DEFAULT_FILE_SYSTEM: Final = "ext4"
DEFAULT_BYTES: Final = GIB
_Mode = csi_pb2.VolumeCapability.AccessMode
WRITERS: Final = (_Mode.SINGLE_NODE_WRITER, _Mode.SINGLE_NODE_SINGLE_WRITER, _Mode.SINGLE_NODE_MULTI_WRITER)
MODES: Final = (*WRITERS, _Mode.SINGLE_NODE_READER_ONLY)


_Rpc = csi_pb2.ControllerServiceCapability.RPC
_CAPABILITIES: Final = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.GET_SNAPSHOT,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.LIST_VOLUME_HEALTH,
)


def controller_capabilities() -> csi_pb2.ControllerGetCapabilitiesResponse:
    """What the Controller service can do, of one node and of all."""
    return csi_pb2.ControllerGetCapabilitiesResponse(
        capabilities=[csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
    )


def check(capability: csi_pb2.VolumeCapability) -> csi_pb2.VolumeCapability:
    """The capability, if a volume can be used so. Raises InvalidArgument."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise InvalidArgument("the volume capability says neither block nor mount")
    mode = capability.access_mode.mode
    if not capability.HasField("access_mode") or mode == _Mode.UNKNOWN:
        raise InvalidArgument("the volume capability has no access mode")
    if mode not in MODES:
        name = _Mode.Mode.Name(mode) if mode in _Mode.Mode.values() else str(mode)
        raise InvalidArgument(f"access mode {name} is not possible", "a volume lives on one node's disk: use ReadWriteOnce")
    if kind == "mount":
        fstype = capability.mount.fs_type
        if fstype and fstype not in FILE_SYSTEMS:
            raise InvalidArgument(f"file system {fstype!r} is not supported", f"use {' or '.join(FILE_SYSTEMS)}")
        if capability.mount.volume_mount_group:
            raise InvalidArgument("volume_mount_group is not supported", "kubelet changes the owners itself (fsGroup)")
        if sum(len(flag.encode()) for flag in capability.mount.mount_flags) > 4096:
            raise InvalidArgument("the mount flags have more than 4 KiB")
    return capability


def check_all(capabilities: Iterable[csi_pb2.VolumeCapability]) -> list[csi_pb2.VolumeCapability]:
    """All of them, at least one. Raises InvalidArgument."""
    found = [check(capability) for capability in capabilities]
    if not found:
        raise InvalidArgument("the volume capabilities are missing")
    return found


def is_possible(capabilities: Iterable[csi_pb2.VolumeCapability]) -> str | None:
    """Why a volume cannot be used in all these ways; None if it can."""
    try:
        check_all(capabilities)
    except StillframeError as error:
        return error.message
    return None


def file_system(capability: csi_pb2.VolumeCapability) -> str:
    """The file system of a mount capability."""
    return capability.mount.fs_type or DEFAULT_FILE_SYSTEM


def check_range(capacity: csi_pb2.CapacityRange) -> None:
    """Raises InvalidArgument for negative or contradictory bounds."""
    if capacity.required_bytes < 0 or capacity.limit_bytes < 0:
        raise InvalidArgument("a capacity bound is negative")
    if 0 < capacity.limit_bytes < capacity.required_bytes:
        raise InvalidArgument("the capacity's limit is below what is required")


def size_for(
    capacity: csi_pb2.CapacityRange, capabilities: Iterable[csi_pb2.VolumeCapability], least_bytes: int = 0
) -> int:
    """Bytes of a new volume: what is required, or else `least_bytes` (its source's size) or 1 GiB.

    Raises InvalidArgument, OutOfRange.
    """
    check_range(capacity)
    xfs = any(item.HasField("mount") and file_system(item) == "xfs" for item in capabilities)
    lower = max(capacity.required_bytes, least_bytes, XFS_BYTES_MIN if xfs else VOLUME_BYTES_MIN)
    upper = min(capacity.limit_bytes or VOLUME_BYTES_MAX, VOLUME_BYTES_MAX)
    if not capacity.required_bytes and not least_bytes:
        lower = max(lower, min(DEFAULT_BYTES, upper))
    if lower > VOLUME_BYTES_MAX or volume_size(lower) > upper:
        raise OutOfRange(
            f"no volume has {format_size(lower)} at least and {format_size(upper)} at most",
            "sizes are multiples of 64 KiB from 1 MiB (xfs: 300 MiB, from a source: the source's) to 16 TiB less 64 KiB",
        )
    return volume_size(lower)


def fits(size_bytes: int, capacity: csi_pb2.CapacityRange) -> bool:
    """Whether a volume of that size is within the range."""
    return capacity.required_bytes <= size_bytes and (not capacity.limit_bytes or size_bytes <= capacity.limit_bytes)
