"""A control group of its own for processes that may eat memory, so that the kernel kills them alone (cgroups(7)).

Version 1's memory controller takes a child group anywhere. Version 2's wants a group without processes as the parent: the
caller moves into a group beside, which works where the caller is alone in its group (systemd: `Delegate=yes`).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group with a limit."""

    path: Path

    def add(self, pid: int) -> None:
        """Move a process, with what it will fork. Raises OSError."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Only once its processes are gone; else it stays."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def limited(name: str, limit_bytes: int) -> MemoryGroup:
    """The group `name` below our own, made if need be, with at most `limit_bytes` of memory. Raises OSError."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in groups:
        path = _ROOT / "memory" / groups["memory"].lstrip("/") / name
        path.mkdir(exist_ok=True)
        (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
        return MemoryGroup(path)
    ours = _ROOT / groups[""].lstrip("/")
    beside = ours / "engine"
    if "memory" not in (ours / "cgroup.subtree_control").read_text().split():
        beside.mkdir(exist_ok=True)
        (beside / "cgroup.procs").write_text(str(os.getpid()))
        (ours / "cgroup.subtree_control").write_text("+memory")
    path = ours / name
    path.mkdir(exist_ok=True)
    (path / "memory.max").write_text(str(limit_bytes))
    return MemoryGroup(path)
