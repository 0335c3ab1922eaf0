"""The mounts of this process's namespace, as /proc/self/mountinfo tells them (proc_pid_mountinfo(5)). Any thread.

Nothing here touches a mounted file system, so a dead one holds nobody up.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEVICES_SOURCE: Final = "stillframe-dev"
"""What the engine's file system of device nodes is called."""
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line. `device` is major:minor of the file system, `root` the part of it that is mounted.

    `options` are the mount's own, `super_options` the file system's, which all its mounts share.
    """

    id: int
    parent: int
    device: str
    root: str
    target: str
    fstype: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options


def parse(content: bytes) -> list[Mount]:
    """The mounts in the order of the file, which is that of mounting."""
    return [_parse_line(line) for line in content.split(b"\n") if line]


def _parse_line(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    number, parent, device, root, target, own, *_ = map(_decoded, before.split(b" "))
    fstype, source, shared = map(_decoded, after.split(b" ", 2))
    options, super_options = tuple(own.split(",")), tuple(shared.split(","))
    return Mount(int(number), int(parent), device, root, target, fstype, source, options, super_options)


def _decoded(field: bytes) -> str:
    """Space, tab, newline and backslash are written as three octal digits (mangle_path in fs/seq_file.c)."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))


def read() -> list[Mount]:
    """All mounts of this namespace."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def place(target: str) -> str:
    """The absolute path that mountinfo would show. The last part is not looked at: the file system there may be dead."""
    folder, name = os.path.split(os.path.abspath(target))
    return os.path.join(os.path.realpath(folder), name)


def mounts_at(target: str) -> list[Mount]:
    """The mounts at exactly that path, the topmost last."""
    wanted = place(target)
    return [mount for mount in read() if mount.target == wanted]


def is_mounted(target: str) -> bool:
    """Whether anything is mounted at exactly that path."""
    return bool(mounts_at(target))


def mounts_of(device: str) -> list[Mount]:
    """The mounts of a block device's file system, bind mounts of its parts included. Raises OSError if there is no node."""
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return [mount for mount in read() if mount.device == wanted]
