"""What a host, or a node's container, must have: checks of facts that `doctor_host` has gathered. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from driver.core.sizes import GIB, format_size

KERNEL_MIN: Final = (5, 15)
"""What is tested (docs/installation.md)."""
KERNEL_FAST: Final = (6, 2)
"""From here on, writes to one FUSE file go in parallel (FOPEN_PARALLEL_DIRECT_WRITES)."""
FUSE_MINOR_MIN: Final = 31
STATE_FREE_MIN: Final = GIB
CLOCK_WARNING: Final = 60.0
CLOCK_PROBLEM: Final = 900.0
"""S3 refuses requests that are signed with a clock so far off (RequestTimeTooSkewed)."""
CAP_SYS_ADMIN: Final = 21
CAP_IPC_LOCK: Final = 14
CAP_SYS_RESOURCE: Final = 24
FILE_SYSTEMS: Final = ("ext4", "xfs")


class Grade(StrEnum):
    """UNSEEN is what this doctor cannot see, and another can."""

    OK = "ok"
    UNSEEN = "unseen"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `fix` says what to do unless all is well."""

    name: str
    grade: Grade
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryFact:
    """What asking a repository gave. `error` and `hint` are empty if it answered. `clock` is its clock less ours, in
    seconds; `is_new`: nothing is in it yet."""

    name: str
    url: str
    error: str = ""
    hint: str = ""
    conditional_put: bool = True
    clock: float = 0.0
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What was found. A text of errors is empty where something works; None: it was not looked at."""

    version: str
    user: int
    kernel: str
    machine: str
    capabilities: int
    features: Mapping[str, str]
    fuse: int | str | None
    loop: str | None
    fuse_timeout: int | None
    programs: Mapping[str, str | None]
    cgroup: int
    state: str
    state_error: str
    state_type: str
    state_free: int
    direct_io: str
    memory_free: int
    engine: Mapping[str, Any] | str
    plugin: str | None
    repositories: Sequence[RepositoryFact] | str = field(default_factory=tuple)


def _check(name: str, found: str, problem: str = "", warning: str = "") -> Check:
    """`problem` and `warning` are what to do, where there is one."""
    grade = Grade.PROBLEM if problem else Grade.WARNING if warning else Grade.OK
    return Check(name, grade, found, problem or warning)


def kernel(facts: HostFacts) -> Iterable[Check]:
    """Version, features, devices and privileges."""
    numbers = re.match(r"(\d+)\.(\d+)", facts.kernel)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    old = f"use Linux {KERNEL_MIN[0]}.{KERNEL_MIN[1]} or newer"
    slow = f"from {KERNEL_FAST[0]}.{KERNEL_FAST[1]} on a volume's writes go in parallel, which is faster"
    yield _check("kernel", facts.kernel, old if version < KERNEL_MIN else "", slow if version < KERNEL_FAST else "")
    machine = "" if facts.machine in ("x86_64", "aarch64") else "use a machine with x86_64 or aarch64"
    yield _check("machine", facts.machine, machine)
    yield _check("user", "root" if facts.user == 0 else f"user {facts.user}", "run it as root" if facts.user else "")
    for name, error in facts.features.items():
        fix = "use a newer kernel, or look at the container's seccomp profile" if error else ""
        yield _check(name, error or "works", fix)
    yield _fuse(facts.fuse)
    loop = "load the module on the host: modprobe loop; in a container: run it privileged, with the host's /dev"
    not_seen = "run as root, privileged, to see it"
    yield _check("loop device with direct I/O", facts.loop or ("not looked at" if facts.loop is None else "works"),
                 loop if facts.loop else "", not_seen if facts.loop is None else "")  # fmt: skip
    yield from _capabilities(facts.capabilities)
    yield _fuse_timeout(facts.fuse_timeout)


def _fuse(found: int | str | None) -> Check:
    if found is None:
        return _check("/dev/fuse", "not looked at", warning="run as root, privileged, to see it")
    if isinstance(found, str):
        return _check("/dev/fuse", found, "load the module on the host: modprobe fuse; in a container: run it privileged")
    old = "use Linux 5.4 or newer" if found < FUSE_MINOR_MIN else ""
    return _check("/dev/fuse", f"the kernel speaks FUSE 7.{found}", old)


def _capabilities(held: int) -> Iterable[Check]:
    lacking = {
        CAP_SYS_ADMIN: ("CAP_SYS_ADMIN", "run it privileged: without it nothing can be mounted"),
        CAP_SYS_RESOURCE: (
            "CAP_SYS_RESOURCE",
            "grant it: keeps the engine clear of the OOM killer and of its own I/O, and lets a mounted ext4 grow",
        ),
        CAP_IPC_LOCK: ("CAP_IPC_LOCK", "grant it: buffers then stay in memory when the host swaps"),
    }
    for number, (name, fix) in lacking.items():
        is_held = bool(held >> number & 1)
        must = number == CAP_SYS_ADMIN
        yield _check(name, "held" if is_held else "not held", fix if must and not is_held else "", "" if is_held else fix)


def _fuse_timeout(seconds: int | None) -> Check:
    name = "fs.fuse.max_request_timeout"
    if seconds is None:
        return _check(name, "the kernel has no such limit")
    fix = "set it to 0 (sysctl): the kernel takes a volume away whose disk answers later than that" if seconds else ""
    return _check(name, f"{seconds} s" if seconds else "no limit", warning=fix)


def host(facts: HostFacts) -> Iterable[Check]:
    """Programs, control groups, the state folder, memory."""
    for name, version in facts.programs.items():
        found = "not installed" if version is None else version or "installed, of an unknown version"
        yield _check(name, found, f"install {_PACKAGES[name]}" if version is None else "")
    limit = "" if facts.cgroup else "mount /sys/fs/cgroup: --transfer-memory has no effect without control groups"
    yield _check("control groups", f"version {facts.cgroup}" if facts.cgroup else "none", warning=limit)
    if facts.state_error:
        yield _check("state folder", f"{facts.state}: {facts.state_error}", f"as root: mkdir -p -m 700 {facts.state}")
        return
    other = "put it on ext4 or xfs: others are not tested" if facts.state_type not in FILE_SYSTEMS else ""
    yield _check("state folder", f"{facts.state} on {facts.state_type or 'a file system of an unknown type'}", warning=other)
    direct = "put the state folder on a file system with direct I/O: ext4 or xfs" if facts.user == 0 else "run it as root"
    yield _check("direct I/O in the state folder", facts.direct_io or "works", direct if facts.direct_io else "")
    yield _free(facts)


_PACKAGES: Final[Mapping[str, str]] = {
    "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs", "blkid": "util-linux",
}  # fmt: skip
PROGRAMS: Final = tuple(_PACKAGES)


def _free(facts: HostFacts) -> Check:
    """Against the settings of the engine, if it runs: one session's spill on the disk, all sessions' memory."""
    given: Mapping[str, Any] = facts.engine.get("settings", {}) if not isinstance(facts.engine, str) else {}
    spill, memory = int(given.get("spill_bytes", 0)), int(given.get("node_bytes", 0))
    found = f"{format_size(facts.state_free)} of disk, {format_size(facts.memory_free)} of memory"
    if facts.state_free < max(STATE_FREE_MIN, spill):
        wanted = f"a snapshot may spill {format_size(spill)} there" if spill else "volumes and records need it"
        return _check("free", found, warning=f"make room in {facts.state}: {wanted}")
    if facts.memory_free < memory:
        fix = f"snapshots may take {format_size(memory)} of memory (--node-memory): lower that, or free some"
        return _check("free", found, warning=fix)
    return _check("free", found)


def running(facts: HostFacts) -> Iterable[Check]:
    """Engine and node plugin, and whether they are of one version with this program."""
    if isinstance(facts.engine, str):
        start = f"start it: stillframe --state {facts.state} engine run"
        yield _check("engine", facts.engine, warning=start if facts.user == 0 else "run doctor as root to ask it")
    else:
        yield _same("engine", str(facts.engine["version"]), facts.version, "stillframe engine run --take-over")
    if facts.plugin is not None:
        yield _same("node plugin", facts.plugin, facts.version, "start it again with this version")


def _same(name: str, version: str, ours: str, fix: str) -> Check:
    differs = f"it is not of this program's version, {ours}; an older engine works with a newer plugin. To change it: {fix}"
    return _check(name, f"runs, version {version}", warning=differs if version != ours else "")


def repositories(facts: HostFacts) -> Iterable[Check]:
    """Whether each can be reached with its credentials, and what its store can do."""
    if isinstance(facts.repositories, str):
        yield _check("repositories", facts.repositories, "mend the file; the README has an example")
        return
    if not facts.repositories:
        yield _check("repositories", "none", warning=f"add one to {facts.state}/repositories.toml: snapshots need it")
    for item in facts.repositories:
        name = f"repository {item.name}"
        if item.error:
            yield _check(name, item.error, item.hint or f"look at {item.url}")
            continue
        yield _check(name, f"{item.url} answers{', nothing is in it yet' if item.is_new else ''}")
        fix = "use a store that honours If-None-Match: without it a running snapshot cannot be deleted safely"
        works = "works" if item.conditional_put else "is ignored"
        yield _check(f"{name}: conditional PUT", works, warning="" if item.conditional_put else fix)
        off, sync = abs(item.clock), "set this host's clock (NTP)"
        found = f"the store's differs by {off:.0f} s"
        yield _check(f"{name}: clock", found, sync if off >= CLOCK_PROBLEM else "", sync if off >= CLOCK_WARNING else "")


GROUPS: Final = {"kernel": kernel, "host": host, "running": running, "repositories": repositories}
"""Groups of checks, by the names of `--only`."""


def checks(facts: HostFacts, groups: Iterable[str]) -> list[Check]:
    """All checks of those groups."""
    return [check for group in groups for check in GROUPS[group](facts)]
