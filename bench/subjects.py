"""What is measured: block devices on a file, each a context that leaves nothing behind.

`plain loop` is the floor, `fuse_limit` the limit of the transport, `storage daemon` what QEMU offers in the same place.
All stand on a file that was allocated and written once in full, so that no first write converts extents.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench import fio
from bench.engine import engine, volume
from bench.plan import Plan
from bench.programs import ProgramFailed, compiled, daemon, run, wait_until

LOOP: Final = "plain loop"
LIMIT: Final = "fuse_limit"
DAEMON: Final = "storage daemon"
CACHED_DAEMON: Final = "storage daemon, page cache"
OURS: Final = "stillframe"
_HERE: Final = Path(__file__).parent
_LIMIT_THREADS: Final = 8

Opened = contextlib.AbstractContextManager[str]


def steady_subjects() -> dict[str, Callable[[Plan], Opened]]:
    """All of them by name: each makes a fresh device of `plan.file_bytes`, written once in full."""
    return {
        LOOP: lambda plan: _on_file(plan, plain_loop),
        LIMIT: lambda plan: _on_file(plan, lambda file: fuse_limit(file, plan)),
        DAEMON: lambda plan: _on_file(plan, lambda file: storage_daemon(file, plan)),
        OURS: ours,
    }


@contextlib.contextmanager
def _on_file(plan: Plan, make: Callable[[Path], Opened]) -> Iterator[str]:
    with written_file(plan, "subject", plan.file_bytes) as file, make(file) as device:
        yield device


@contextlib.contextmanager
def ours(plan: Plan) -> Iterator[str]:
    """A thick volume of an engine of its own."""
    with engine(plan) as running, volume(running, "bench", plan.file_bytes) as device:
        yield device


@contextlib.contextmanager
def written_file(plan: Plan, name: str, size_bytes: int) -> Iterator[Path]:
    """A file in the work folder, allocated and written once in full."""
    path = plan.folder / name
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    try:
        fio.fill(str(path), size_bytes)
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def plain_loop(file: Path) -> Iterator[str]:
    """A loop device with direct I/O and blocks of 4096 bytes on `file`; gone at the end, also for the kernel."""
    device = run(["losetup", "--find", "--show", "--direct-io=on", "--sector-size", "4096", str(file)]).strip()
    try:
        if (_queue(device) / "loop/dio").read_text().strip() != "1":
            raise ProgramFailed(f"{device} on {file} has no direct I/O")
        yield device
    finally:
        _detach(device)


def _queue(device: str) -> Path:
    return Path("/sys/block") / Path(device).name


def _detach(device: str) -> None:
    run(["losetup", "--detach", device])
    deadline = time.monotonic() + 10
    while (_queue(device) / "loop").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@contextlib.contextmanager
def _mounted_file(plan: Plan, name: str) -> Iterator[Path]:
    """An empty file that a FUSE file can be mounted on; unmounted at the end."""
    path = plan.folder / name
    path.touch()
    try:
        yield path
    finally:
        if _is_mounted(path):
            run(["umount", str(path)])
        path.unlink(missing_ok=True)


def _is_mounted(path: Path) -> bool:
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4] == str(path) for line in table)


@contextlib.contextmanager
def fuse_limit(file: Path, plan: Plan) -> Iterator[str]:
    """fuse_limit.c with 8 threads on `file`, and a loop device on it."""
    program = compiled(_HERE / "fuse_limit.c", plan.build)
    log = plan.folder / "fuse_limit.log"
    with contextlib.ExitStack() as stack:
        mounted = plan.folder / "fuse_limit.mount"
        process = stack.enter_context(daemon([str(program), str(file), str(mounted), str(_LIMIT_THREADS)], log))
        stack.enter_context(_mounted_file(plan, mounted.name))
        wait_until("the mount of fuse_limit", lambda: _is_mounted(mounted), process, log)
        yield stack.enter_context(plain_loop(mounted))


@contextlib.contextmanager
def storage_daemon(file: Path, plan: Plan, fleece: Path | None = None, *, direct: bool = True) -> Iterator[str]:
    """qemu-storage-daemon's FUSE export of `file`, and a loop device on it; without `direct` through the page cache.

    With `fleece`, an image of the same size, every first write copies what it overwrites there before it is done: the
    state of a volume that a backup with fleecing has just been begun of.
    """
    log = plan.folder / "storage-daemon.log"
    arguments = ["qemu-storage-daemon", "--blockdev", _blockdev("disk", file, direct)]
    exported = "disk"
    if fleece is not None:
        exported = "cbw"
        arguments += ["--blockdev", _blockdev("fleece", fleece, direct)]
        arguments += ["--blockdev", "driver=copy-before-write,node-name=cbw,file=disk,target=fleece"]
        arguments += ["--blockdev", "driver=snapshot-access,node-name=snapshot,file=cbw"]
    with contextlib.ExitStack() as stack:
        mounted = stack.enter_context(_mounted_file(plan, "storage-daemon.mount"))
        arguments += ["--export", f"type=fuse,id=bench,node-name={exported},mountpoint={mounted},writable=on"]
        process = stack.enter_context(daemon(arguments, log))
        wait_until("the mount of qemu-storage-daemon", lambda: _is_mounted(mounted), process, log)
        yield stack.enter_context(plain_loop(mounted))


def _blockdev(node: str, file: Path, direct: bool) -> str:
    return f"driver=file,node-name={node},filename={file}{',cache.direct=on,aio=native' if direct else ''}"


def clean_up(folder: Path) -> None:
    """Take away what an earlier run that was killed left: loop devices and mounts on files below `folder`."""
    listed = run(["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"])
    for entry in json.loads(listed or '{"loopdevices": []}')["loopdevices"]:
        if str(entry["back-file"] or "").startswith(f"{folder}/"):
            _detach(entry["name"])
    with open("/proc/self/mountinfo") as table:
        points = [line.split()[4] for line in table]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            run(["umount", point])
