"""What takes snapshots or backups of one volume, and gives them back: ours, restic, borg, rclone.

Each has a repository of its own, fresh and in memory: in the same kind of S3 server, for borg, which has no S3, in a folder.
restic and borg read the block device, rclone the backing file; what they take is of one instant only while nobody writes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.engine import REPOSITORY, Engine, Snapshot
from bench.plan import Plan
from bench.programs import ProgramFailed, run
from bench.servers import BUCKET, Store, rclone, rclone_environment, store
from bench.subjects import OURS

RESTIC: Final = "restic"
BORG: Final = "borg"
RCLONE: Final = "rclone copy"
_SECONDS: Final = 900.0
_RESTORED: Final = "restored"


@dataclass(slots=True)
class Subject:
    """`take` what the volume is now, `restore` what was taken last, the bytes in its repository."""

    name: str
    take: Callable[[], object]
    restore: Callable[[], object]
    stored_bytes: Callable[[], int]
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Ours: descriptions of the snapshots."""


@contextlib.contextmanager
def ours(plan: Plan, running: Engine, volume: str, server_name: str) -> Iterator[Subject]:
    with store(plan, server_name) as server:
        running.use(server, direct=True)
        shown: list[dict[str, Any]] = []

        def take() -> None:
            taken = Snapshot(running, f"bench-{uuid.uuid4()}")
            running.call("snapshot.create", volume=volume, name=taken.name, repository=REPOSITORY)
            shown.append(taken.wait(_SECONDS))

        def restore() -> None:
            last = shown[-1]["name"]
            job = running.call(
                "snapshot.restore", snapshot=last, repository=REPOSITORY, volume=_RESTORED, provisioning="thin"
            )["job"]
            status = running.call("job.status", job=job, wait_seconds=10)
            while status["state"] == "running":
                status = running.call("job.status", job=job, wait_seconds=10)
            if status["error"]:
                raise ProgramFailed(str(status["error"]))
            running.call("volume.delete", name=_RESTORED)

        yield Subject(OURS, take, restore, lambda: _bucket_bytes(server), shown)


@contextlib.contextmanager
def restic(plan: Plan, device: str, server_name: str) -> Iterator[Subject]:
    cache = plan.folder / "restic-cache"
    with store(plan, server_name) as server:
        access, secret = server.keys
        environment = {
            **os.environ, "RESTIC_REPOSITORY": f"s3:{server.direct}/{BUCKET}/restic", "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(cache), "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret,
        }  # fmt: skip
        target = plan.folder / _RESTORED

        def shell(script: str) -> None:
            run(["sh", "-ec", script], _SECONDS, environment)

        shell("restic init -q")
        try:
            yield Subject(
                RESTIC,
                lambda: shell(f"restic backup -q --stdin --stdin-filename disk <{device}"),
                lambda: shell(f"restic dump -q latest /disk >{target}; sync {target}; rm {target}"),
                lambda: _bucket_bytes(server),
            )
        finally:
            shutil.rmtree(cache, ignore_errors=True)


@contextlib.contextmanager
def borg(device: str) -> Iterator[Subject]:
    """It has no restore that is comparable: its archives are of a device node."""
    folder = Path(tempfile.mkdtemp(prefix="stillframe-bench-", dir="/dev/shm"))
    environment = {**os.environ, "BORG_BASE_DIR": str(folder / "base"), "BORG_REPO": str(folder / "repository")}

    def restore() -> None:
        raise ProgramFailed("borg is not asked to restore")

    try:
        run(["borg", "init", "-e", "none"], environment=environment)
        yield Subject(
            BORG,
            lambda: run(["borg", "create", "--read-special", f"::{uuid.uuid4()}", device], _SECONDS, environment),
            restore,
            lambda: sum(path.stat().st_size for path in (folder / "repository").rglob("*") if path.is_file()),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def copy(plan: Plan, disk: Path, server_name: str) -> Iterator[Subject]:
    """`rclone copyto` of the backing file, and back."""
    with store(plan, server_name) as server:
        environment = rclone_environment(server.direct)
        target, remote = plan.folder / _RESTORED, f":s3:{BUCKET}/copy"

        def take() -> None:
            with disk.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            run([rclone(), "copyto", str(disk), remote], _SECONDS, environment)

        def restore() -> None:
            run([rclone(), "copyto", remote, str(target)], _SECONDS, environment)
            run(["sync", str(target)], _SECONDS)
            target.unlink()

        yield Subject(RCLONE, take, restore, lambda: _bucket_bytes(server))


def _bucket_bytes(server: Store) -> int:
    """What is in the bucket, by rclone's count."""
    words = run([rclone(), "size", f":s3:{BUCKET}", "--json"], environment=rclone_environment(server.direct))
    return int(words.split('"bytes":')[1].split(",")[0].rstrip("}\n "))
