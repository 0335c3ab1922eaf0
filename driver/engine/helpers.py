"""What the keeper has done by a short-lived fork of itself, because it may wait for a FUSE answer or for a lock.

Each function gets the descriptors of its volumes, by volume and role, and a JSON argument; it returns a JSON result or
raises a domain error. Standard library only, one thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from driver.core.errors import NotPermitted, StillframeError, Unsupported
from driver.fuse.protocol import MAX_WRITE_BYTES
from driver.host import disks, files, kernel, loop
from driver.volume import session
from driver.volume.layout import OnFull, Shared, Word

Argument = Mapping[str, Any]
Volumes = Mapping[str, Mapping[str, int]]


def mount(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Mount the FUSE file of one volume at `file`; the first `slots` request slots are going to serve it. Nobody serves the
    volume. Raises NotPermitted, Unsupported."""
    ((_, roles),) = volumes.items()
    session.set_slots(Shared(roles["memory"]), argument["slots"])
    file = argument["file"]
    os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    options = f"fd={roles['fuse']},rootmode=100600,user_id=0,group_id=0,max_read={MAX_WRITE_BYTES}"
    try:
        kernel.mount("stillframe", file, "fuse.stillframe", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    except PermissionError as error:
        raise NotPermitted(f"mounting FUSE at {file}: {error.strerror}", "run the engine as root, privileged") from error
    except OSError as error:
        raise Unsupported(f"mounting FUSE at {file}: {error.strerror}", "load the kernel module: modprobe fuse") from error
    return {}


def attach(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Make the block device `node` on the mounted `file`, and note it in `record`."""
    node, record = argument["node"], Path(argument["record"])

    def note(device: loop.LoopDevice) -> None:
        files.write_json(record, {**asdict(device), "node": node})

    loop.attach(argument["file"], node, argument["block_size"], argument["label"], note)
    return {}


def detach(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Take the block device noted in `record` and the FUSE mount away; either may be gone already.

    An attach that was broken off may have left the `node` of a device that the kernel has taken away since.
    """
    _detach(Path(argument["record"]))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(argument["node"])
    with contextlib.suppress(OSError):  # EINVAL: not mounted, or not any more
        while True:
            kernel.umount(argument["file"], kernel.MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(argument["file"])
    return {}


def _detach(record: Path) -> None:
    try:
        noted = files.read_json(record)
    except FileNotFoundError:
        return
    loop.detach(noted["node"], loop.LoopDevice.of(noted))
    files.remove(record)


def leave(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Take away all block devices noted in the folder `records` that nobody uses. What is said of those that stay."""
    in_use = []
    for record in sorted(Path(argument["records"]).glob("*.json")):
        try:
            _detach(record)
        except (StillframeError, OSError) as error:
            in_use.append(str(error))
    return {"in_use": in_use}


def stay(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Keep the block device noted in `record`, if it is still there: a detach that was broken off let it go."""
    noted = files.read_json(Path(argument["record"]))
    loop.stay(noted["node"], loop.LoopDevice.of(noted))
    return {}


def resize(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Publish a volume's new size, first to its readers, then to the device `node` (if there is one)."""
    ((_, roles),) = volumes.items()
    Shared(roles["memory"]).words[Word.SIZE_BYTES] = argument["size_bytes"]
    if argument.get("node"):
        loop.resize(argument["node"])
        if loop.size_bytes(argument["node"]) != argument["size_bytes"]:
            raise Unsupported("the kernel kept the device's old size", "detach the volume and attach it again")
    return {}


def cut(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Begin `sessions` at one instant: by volume, each session's UUID and limits. The cut's time, and how many chunks each
    has to read."""
    parts = {}
    for volume, given in sorted(argument["sessions"].items()):
        limits = session.Limits(given["memory"], given["spill"], OnFull[given["on_full"]], given["parent_chunks"])
        parts[volume] = session.Part(Shared(volumes[volume]["memory"]), given["session"], limits)
    cut = session.begin(list(parts.values()), argument["deadline_seconds"])
    return {"cut": cut, "pending": {volume: part.shared.words[Word.PENDING_CHUNKS] for volume, part in parts.items()}}


def end(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """End `session` of one volume, and empty the spill file; with `is_base` its snapshot is the volume's base, and the next
    session is to read the chunks `again`. Nothing happens if it has ended."""
    ((_, roles),) = volumes.items()
    part = session.Part(Shared(roles["memory"]), argument["session"])
    session.end(
        part, argument["deadline_seconds"], lambda: os.ftruncate(roles["spill"], 0), is_base=argument["is_base"],
        again=argument["again"],
    )  # fmt: skip
    return {}


def share(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Have `file`, a new volume's, share the blocks of one volume as they are at one instant, durably.

    `shared` is false, and the file a hole again, where the file system cannot do that or not while writes wait.
    """
    ((_, roles),) = volumes.items()
    memory, size_bytes = Shared(roles["memory"]), argument["size_bytes"]
    target = os.open(argument["file"], os.O_RDWR | os.O_CLOEXEC)
    try:
        is_shared = session.hold(
            memory, argument["deadline_seconds"],
            lambda: disks.share(target, roles["backing"], memory.words[Word.SIZE_BYTES], argument["seconds"]),
        )  # fmt: skip
        if not is_shared:
            os.ftruncate(target, 0)
            os.ftruncate(target, size_bytes)
        os.fsync(target)
    finally:
        os.close(target)
    return {"shared": is_shared}


def clean(volumes: Volumes, argument: Argument) -> dict[str, Any]:
    """Take away the loop devices that an earlier engine noted in the folder `records`; they are dead.

    One that is still mounted or open somewhere goes when its user lets go of it. Returns which.
    """
    stuck = []
    for record in sorted(Path(argument["records"]).glob("*.json")):
        noted = files.read_json(record)
        device = loop.LoopDevice.of(noted)
        try:
            if not loop.abandon(noted["node"], device):
                dead = f"{noted['node']} (loop{device.number})"
                stuck.append(f"{dead} is still in use, dead: unmount it; it goes with its last user")
            files.remove(record)
        except OSError as error:
            stuck.append(f"{noted['node']}: {error}")
    return {"stuck": stuck}


HELPERS: Mapping[str, Callable[[Volumes, Argument], dict[str, Any]]] = {
    function.__name__: function for function in (mount, attach, detach, leave, stay, resize, cut, end, share, clean)
}
