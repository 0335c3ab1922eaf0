"""The upload of a full volume of incompressible data, nobody using it, beside `rclone copy` of the same file."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Final

from bench.engine import Engine, engine, snapshot, volume
from bench.plan import GIB, MIB, Plan, rotated
from bench.programs import run
from bench.report import AT_LEAST, Results
from bench.servers import BUCKET, Store, rclone, rclone_environment, real_server, store
from bench.subjects import OURS

VOLUME: Final = "bench"
RCLONE: Final = "rclone copy"
OF_RCLONE: Final = 0.8
_SIZE_BYTES: Final = 4 * GIB
_COPY_SECONDS: Final = 600.0


def measure(plan: Plan, results: Results) -> None:
    """All rounds: each upload gets a fresh server whose data is in memory, and a file that is not cached."""
    size_bytes = plan.scaled(_SIZE_BYTES)
    server_name = real_server(plan)
    _touch_memory(size_bytes)
    with engine(plan) as running, volume(running, VOLUME, size_bytes):
        identifier = running.call("volume.show", name=VOLUME)["id"]
        disk = running.state / "volumes" / identifier / "disk"
        results.case(f"upload: size, to {server_name}", OURS, size_bytes / 1e6, "MB")
        for number in range(plan.rounds):
            speeds = {}
            for subject in rotated([OURS, RCLONE], number):
                with store(plan, server_name) as server:
                    seconds = _ours(running, server) if subject == OURS else _rclone(disk, server)
                speeds[subject] = size_bytes / 1e6 / seconds
                results.case("upload", subject, speeds[subject], "MB/s")
            results.ratio("upload: speed of rclone copy's", speeds[OURS] / speeds[RCLONE], AT_LEAST, OF_RCLONE)


def _ours(running: Engine, server: Store) -> float:
    """Seconds from the request of a snapshot to its commit."""
    running.use(server, direct=True)
    started = time.monotonic()
    with snapshot(running, VOLUME) as taken:
        taken.wait()
        return time.monotonic() - started


def _rclone(disk: Path, server: Store) -> float:
    """Seconds of an `rclone copyto` with its defaults."""
    with disk.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.monotonic()
    command = [rclone(), "copyto", str(disk), f":s3:{BUCKET}/copy"]
    run(command, timeout_seconds=_COPY_SECONDS, environment=rclone_environment(server.direct))
    return time.monotonic() - started


def _touch_memory(size_bytes: int) -> None:
    """Use as much memory as a server will: a virtual machine pays for a page's first use, so the first round would."""
    folder = Path("/dev/shm")
    if not folder.is_dir() or shutil.disk_usage(folder).free < 2 * size_bytes:
        return
    path = folder / f"stillframe-bench-{os.getpid()}"
    part = bytes(MIB)
    try:
        with path.open("wb") as file:
            for _ in range(size_bytes // MIB):
                file.write(part)
    finally:
        path.unlink(missing_ok=True)
