"""Mounts whose device is gone: the engine was started anew, or the node's disk gave way, while pods had them. Any thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Final

from driver.host import freeze, mountinfo
from driver.host.mountinfo import Mount

_DELETED: Final = "//deleted"


def volume_of(mount: Mount, devices: str) -> str | None:
    """The name of the volume that a mount shows: its file system, or its device node itself. Pure."""
    if os.path.dirname(mount.source) == devices:
        return os.path.basename(mount.source)
    root = mount.root.removesuffix(_DELETED)
    return root.removeprefix("/") if mount.source == mountinfo.DEVICES_SOURCE and root != "/" else None


def dead_targets(mounts: Sequence[Mount], devices: str, current: Mapping[str, str]) -> dict[str, list[str]]:
    """By volume, the places where a device is mounted that is not the volume's any more, in the order of mounting. Pure.

    `current` has the numbers (major:minor) of the devices that the engine serves; a mount of a node has its own.
    """
    found: dict[str, list[str]] = {}
    for mount in mounts:
        name = volume_of(mount, devices)
        if name is None:
            continue
        if mount.source == mountinfo.DEVICES_SOURCE:  # the engine removes a node with its device, and makes another one
            is_dead = mount.root.endswith(_DELETED) or name not in current
        else:
            is_dead = current.get(name) != mount.device
        if is_dead:
            found.setdefault(name, []).append(mount.target)
    return found


def dead_volumes(devices: str, names: Sequence[str], given_up: Sequence[str]) -> dict[str, list[str]]:
    """By name, the targets of the named volumes that pods have and that do not answer any more: of those that the engine has
    `given_up`, all."""
    current = {}
    for name in names:
        if name in given_up:
            continue
        with contextlib.suppress(OSError):
            number = os.stat(f"{devices}/{name}").st_rdev
            current[name] = f"{os.major(number)}:{os.minor(number)}"
    dead = dead_targets(mountinfo.read(), devices, current)
    found = {name: targets for name, targets in dead.items() if name in names}
    for targets in found.values():
        for target in targets:
            let_go(target)
    return found


def let_go(target: str) -> None:
    """Thaw the dead file system at `target`: an engine that dies at a cut takes the guard of a freeze along, and whoever
    writes would wait for ever, also when nothing is mounted any more. Nothing happens if it is not frozen."""
    with contextlib.suppress(OSError):  # xfs that has shut down cannot be opened; it lets nobody wait
        freeze.thaw(target)
