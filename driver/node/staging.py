"""CSI Node: a volume's device and file system on this node, made ready once for all pods. gRPC's threads.

Staging attaches the device; for a file system it is made where the volume is empty and was never mounted, checked, grown to
the volume's size, and mounted at the staging path. Every step looks before it acts, so a call that was cut short anywhere is
done again from the start; a mount that has died is taken away and made anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from csi import csi_pb2
from driver.core.errors import FailedPrecondition, InvalidArgument, NotFound
from driver.host import filesystems, mountinfo, mounts
from driver.node.dead import let_go
from driver.node.here import Here
from driver.rpc import capabilities, parameters
from driver.rpc.names import parse_handle

READ_ONLY_MODE = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY


def check_path(what: str, path: str) -> str:
    """An absolute path without surprises. Raises InvalidArgument."""
    if not path:
        raise InvalidArgument(f"the {what} path is missing")
    if not path.startswith("/") or "\0" in path or len(path.encode()) >= 4096 or ".." in path.split("/"):
        raise InvalidArgument(f"the {what} path {path[:256]!r} is no absolute path")
    if not path.strip("/"):
        raise InvalidArgument(f"the {what} path is the root of all paths")
    return path.rstrip("/")


def take_dead_away(path: str, device: str) -> None:
    """Unmount what of ours is mounted at `path` if it is dead: it answers with errors, or stands on an earlier device of
    this volume, of an engine that is gone. (A file system that finds all it is asked for in its cache seems alive.)"""
    found = mountinfo.mounts_at(path)
    if found and (_is_left_over(found[-1], path, device) or not mounts.is_healthy(path)):
        take_away(path, os.path.dirname(device))


def check_mountable(path: str) -> None:
    """Raises FailedPrecondition for a folder with something in it, which a mount would hide, if it is no mount already."""
    if os.path.isdir(path) and not mountinfo.mounts_at(path) and os.listdir(path):
        raise FailedPrecondition(f"{path} is not empty; nothing is mounted over it", "give an empty folder, or none")


def take_away(path: str, devices: str) -> None:
    """Unmount what is mounted at `path`. Nothing happens if nothing is. Raises FailedPrecondition for what is not ours: it
    stands on no device in the folder `devices`."""
    for mount in mountinfo.mounts_at(path):
        if mount.source != mountinfo.DEVICES_SOURCE and os.path.dirname(mount.source) != devices:
            raise FailedPrecondition(
                f"{path} is the mount point of {mount.source}, which is no volume of this driver", f"see: findmnt {path}"
            )
        if mount.source != mountinfo.DEVICES_SOURCE and _is_dead(mount):
            let_go(mount.target)
    mounts.unmount(path)


def _is_dead(mount: mountinfo.Mount) -> bool:
    """Whether a file system stands on a device that the engine does not serve any more."""
    try:
        return mount not in mountinfo.mounts_of(mount.source)
    except OSError:  # there is no such device
        return True


def _is_left_over(mount: mountinfo.Mount, path: str, device: str) -> bool:
    if mount.source == device:
        return mount not in mountinfo.mounts_of(device)
    return mount.source == mountinfo.DEVICES_SOURCE and os.stat(path).st_rdev != os.stat(device).st_rdev


class Staging:
    """Makes volumes ready on this node, and takes them down."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def stage(
        self, volume: dict[str, Any], path: str, capability: csi_pb2.VolumeCapability, volume_context: Mapping[str, str]
    ) -> str:
        """The volume's device, attached and, unless it is wanted as a block device, mounted at `path`.

        Raises AlreadyExists if it is mounted there in another way, FailedPrecondition if what is on it forbids mounting.
        """
        device = str(self._here.engine.call("volume.attach", name=volume["id"])["device"])
        if capability.WhichOneof("access_type") == "mount":
            self._mount(volume, device, path, capability, volume_context)
        return device

    def _mount(
        self, volume: dict[str, Any], device: str, path: str, capability: csi_pb2.VolumeCapability,
        volume_context: Mapping[str, str],
    ) -> None:  # fmt: skip
        fstype = capabilities.file_system(capability)
        read_only = capability.access_mode.mode == READ_ONLY_MODE
        take_dead_away(path, device)
        check_mountable(path)
        if not mountinfo.mounts_of(device):
            self._prepare(volume, device, fstype, volume_context, read_only=read_only)
        mounts.mount(device, path, fstype, [*capability.mount.mount_flags, *(["ro"] if read_only else [])])
        if not volume["formatted"]:
            self._here.engine.call("volume.note_formatted", name=volume["id"])
        if not read_only and filesystems.needs_growth(device, fstype):
            filesystems.grow(device, path, fstype)

    def _prepare(
        self, volume: dict[str, Any], device: str, fstype: str, volume_context: Mapping[str, str], *, read_only: bool
    ) -> None:
        """A file system that can be mounted, of the volume's size. One that was never mounted may be made anew."""
        if not read_only:
            options = parameters.words("mkfsOptions", volume_context.get("mkfsOptions", ""))
            filesystems.make(device, fstype, options, may_reformat=not volume["formatted"])
        elif filesystems.what_is_on(device) != fstype:
            raise FailedPrecondition(f"volume {volume['name']!r} holds no {fstype}, and is to be used read-only")
        filesystems.check(device, fstype, growth_was_cut=volume.get("growing", False))
        if not read_only:
            self._grow(volume, device, fstype)

    def _grow(self, volume: dict[str, Any], device: str, fstype: str) -> None:
        """Have an ext4 take its whole device. It is noted that this has begun, as a cut one needs another check."""
        note = self._here.engine.call
        if fstype == "ext4" and filesystems.needs_growth(device, fstype):
            note("volume.note_growing", name=volume["id"], growing=True)
            filesystems.grow_offline(device, fstype)
            note("volume.note_growing", name=volume["id"], growing=False)
        elif volume.get("growing", False):
            note("volume.note_growing", name=volume["id"], growing=False)

    def unstage(self, volume_handle: str, path: str) -> None:
        """Unmount and detach. Nothing happens to what is gone. Raises FailedPrecondition while it is in use."""
        handle = parse_handle("volume", volume_handle)
        take_away(path, self._here.devices)
        try:
            if handle.where == self._here.node:
                self._here.engine.call("volume.detach", name=handle.id)
        except NotFound:
            pass
