"""CSI Node: a staged volume where a pod expects it, bound there: file system or device node. gRPC's threads."""

from __future__ import annotations

import os
from pathlib import Path

from csi import csi_pb2
from driver.core.errors import FailedPrecondition
from driver.host import mountinfo, mounts
from driver.node.staging import check_mountable, take_away, take_dead_away

SINGLE_WRITER = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_SINGLE_WRITER


def publish(source: str, target: str, device: str, *, read_only: bool) -> None:
    """Show `source`, a mounted folder or `device` itself, at `target`, which is made. Nothing happens if it is there.

    Raises AlreadyExists if something else is, or the same in another way; a dead mount there is taken away.
    """
    take_dead_away(target, device)
    check_mountable(target)
    mounts.bind(source, target, read_only=read_only)


def unpublish(target: str, devices: str) -> None:
    """Unmount and remove `target`. Nothing happens if it is gone.

    Raises FailedPrecondition while it is in use, and if what is there is not of this driver: a mount of no device in the
    folder `devices`, a folder that is not empty, a file with content.
    """
    take_away(target, devices)
    path = Path(target)
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.is_file() and path.stat().st_size == 0:
            path.unlink(missing_ok=True)
        elif os.path.lexists(target):
            raise FailedPrecondition(f"{target} was not made by this driver, and is not removed", "remove it by hand")
    except OSError as error:
        raise FailedPrecondition(f"{target} cannot be removed: {error.strerror}", "look at what is in it") from error


def check_alone(source: str, target: str) -> None:
    """Raises FailedPrecondition if the volume is published anywhere but at `target`: it may be used by one pod only."""
    device, root = _shown(source)
    for mount in mountinfo.read():
        if (mount.device, mount.root) == (device, root) and mount.target not in (source, target):
            raise FailedPrecondition(
                f"the volume is published at {mount.target} already, and may be used by one pod only",
                "use the access mode ReadWriteOnce for several pods of a node",
            )


def _shown(source: str) -> tuple[str, str]:
    """What a mount that shows `source` has as its device and root: those of its own mount, or of the one that it lies in."""
    for folder in (source, *map(str, Path(source).parents)):
        found = mountinfo.mounts_at(folder)
        if found:
            return found[-1].device, os.path.normpath(os.path.join(found[-1].root, os.path.relpath(source, folder)))
    raise FailedPrecondition(f"{source} lies in no mount", "look at /proc/self/mountinfo")
