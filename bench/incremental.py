"""A first snapshot, a second after a hundredth of a database changed, a restore: beside restic, borg and rclone.

An ext4 of real files and a SQLite database, the same for all. In each round every subject takes the first state, then the
database is changed, then all take the second; nobody else uses the volume.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench import backups
from bench.backups import BORG, RCLONE, RESTIC, Subject
from bench.engine import Engine, engine, volume
from bench.plan import GIB, MIB, Plan, rotated
from bench.programs import run
from bench.report import AT_LEAST, AT_MOST, Results
from bench.servers import real_server
from bench.subjects import OURS
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_PACK, CHUNKS_PER_REGION, PACK_BYTES
from driver.transfer import region
from driver.transfer.chunks import Compressor

VOLUME: Final = "incremental"
_VOLUME_BYTES: Final = 8 * GIB
_FILES_BYTES: Final = 4 * GIB
_DATABASE_BYTES: Final = GIB
_ROW_BYTES: Final = 3600
"""One row a page of 4 KiB."""
_CHANGED: Final = 0.01
_TREES: Final = ("/usr", "/opt", "/var/lib", "/root")
_MANIFEST_ENTRY_BYTES: Final = 230
Digests = list[bytes]


def measure(plan: Plan, results: Results) -> None:
    """All rounds."""
    server_name = real_server(plan)
    with engine(plan) as running, volume(running, VOLUME, plan.scaled(_VOLUME_BYTES), fill=False) as device:
        results.case("incremental: files and database", OURS, _fill(plan, device) / 1e6, "MB")
        for number in range(plan.rounds):
            _round(plan, running, device, server_name, number, results)
    _size_of_indexes(results)


def _round(plan: Plan, running: Engine, device: str, server_name: str, number: int, results: Results) -> None:
    seconds: dict[tuple[str, str], float] = {}

    def timed(what: str, subject: Subject, call: Callable[[], object]) -> None:
        started = time.monotonic()
        call()
        seconds[what, subject.name] = time.monotonic() - started
        results.case(f"incremental: {what}", subject.name, seconds[what, subject.name], "s")

    identifier = running.call("volume.show", name=VOLUME)["id"]
    disk = running.state / "volumes" / identifier / "disk"
    with contextlib.ExitStack() as stack:
        subjects = [
            stack.enter_context(backups.ours(plan, running, VOLUME, server_name)),
            stack.enter_context(backups.restic(plan, device, server_name)),
            stack.enter_context(backups.borg(device)),
        ]
        mine, restic, _ = subjects
        for subject in rotated(subjects, number):
            timed("first", subject, subject.take)
            results.case("incremental: size of the first", subject.name, subject.stored_bytes() / 1e6, "MB")
        first_bytes = {subject.name: subject.stored_bytes() for subject in subjects}
        before = _digests(device)
        results.case("incremental: rows changed", OURS, _change(plan, device, number), "rows")
        for subject in rotated(subjects, number):
            read = _bytes_read(running.state)
            timed("second", subject, subject.take)
            if subject is mine:
                _report_second(mine, _bytes_read(running.state) - read, _compressed(device, before), results)
        for subject in rotated([mine, restic], number):
            timed("restore", subject, subject.restore)
        _write_one_block(device)
        mine.take()
        results.ratio("incremental: uploaded for one chunk", mine.shown[-1]["uploaded_bytes"] / MIB, AT_MOST, 1, unit="MiB")
    with backups.copy(plan, disk, server_name) as subject:
        timed("first", subject, subject.take)
        timed("restore", subject, subject.restore)

    def ratio(name: str, of: tuple[str, str], to: tuple[str, str], relation: str, goal: float) -> None:
        results.ratio(f"incremental: {name}", seconds[of] / seconds[to], relation, goal)

    ratio("second, of the first", ("second", OURS), ("first", OURS), AT_MOST, 0.10)
    ratio("second, of restic's second", ("second", OURS), ("second", RESTIC), AT_MOST, 0.10)
    ratio("second, of borg's second", ("second", OURS), ("second", BORG), AT_MOST, 0.10)
    ratio("rate of the first, of restic's", ("first", RESTIC), ("first", OURS), AT_LEAST, 2.0)
    ratio("rate of a restore, of restic's", ("restore", RESTIC), ("restore", OURS), AT_LEAST, 1.5)
    ratio("rate of a restore, of rclone's", ("restore", RCLONE), ("restore", OURS), AT_LEAST, 0.8)
    results.ratio("incremental: size of the first, of restic's", first_bytes[OURS] / first_bytes[RESTIC], AT_MOST, 1.15)


def _report_second(mine: Subject, read_bytes: int, compressed_bytes: int, results: Results) -> None:
    shown = mine.shown[-1]
    swept = shown["session"]["swept_bytes"]
    results.case("incremental: dirty at 64 KiB", OURS, swept / 1e6, "MB")
    uploaded = shown["uploaded_bytes"]
    results.ratio("incremental: uploaded, of dirty compressed alike", uploaded / compressed_bytes, AT_MOST, 1.10)
    results.ratio("incremental: read from the disk, of dirty", read_bytes / swept, AT_MOST, 1.05)


def _fill(plan: Plan, device: str) -> int:
    """A file system with real files and a database; the bytes of both."""
    files_bytes, database_bytes = plan.scaled(_FILES_BYTES), plan.scaled(_DATABASE_BYTES)
    run(["mkfs.ext4", "-q", device], 120)
    copied = 0
    with _mounted(plan, device) as folder:
        for path in _files():
            if copied >= files_bytes:
                break
            target = folder / str(path).lstrip("/")
            with contextlib.suppress(OSError):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                copied += target.stat().st_size
        _make_database(folder / "database", database_bytes)
    return copied + database_bytes


def _files() -> Iterator[Path]:
    for tree in _TREES:
        for parent, folders, names in os.walk(tree):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink():
                    yield path


@contextlib.contextmanager
def _mounted(plan: Plan, device: str) -> Iterator[Path]:
    folder = plan.folder / "mount"
    folder.mkdir(exist_ok=True)
    run(["mount", device, str(folder)])
    try:
        yield folder
    finally:
        run(["umount", str(folder)], 300)


def _make_database(path: Path, size_bytes: int) -> None:
    """A row a page: half of it is text, half does not compress."""
    rng = random.Random(1)
    rows = size_bytes // 4096
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        for first in range(0, rows, 10_000):
            with database:
                chosen = range(first, min(first + 10_000, rows))
                database.executemany("INSERT INTO t VALUES (?, ?)", ((row, _row(rng)) for row in chosen))


def _row(rng: random.Random) -> bytes:
    text = b"the quick brown fox jumps over the lazy dog "
    return (rng.randbytes(_ROW_BYTES // 2) + text * (_ROW_BYTES // len(text)))[:_ROW_BYTES]


def _change(plan: Plan, device: str, seed: int) -> int:
    """Write a hundredth of the database's rows anew, at random; how many."""
    rng = random.Random(100 + seed)
    with _mounted(plan, device) as folder, contextlib.closing(sqlite3.connect(folder / "database")) as database, database:
        (rows,) = database.execute("SELECT max(k) + 1 FROM t").fetchone()
        chosen = rng.sample(range(rows), int(rows * _CHANGED))
        database.executemany("UPDATE t SET v = ? WHERE k = ?", ((_row(rng), row) for row in chosen))
    return len(chosen)


def _write_one_block(device: str) -> None:
    """Turn around the bytes of ext4's boot block, which it leaves alone."""
    fd = os.open(device, os.O_RDWR | os.O_SYNC)
    try:
        os.pwrite(fd, bytes(byte ^ 0xFF for byte in os.pread(fd, 512, 0)), 0)
    finally:
        os.close(fd)


def _chunks(device: str) -> Iterator[bytes]:
    with open(device, "rb", buffering=0) as file:
        while data := file.read(16 * CHUNK_BYTES):
            yield from (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))


def _digests(device: str) -> Digests:
    return [hashlib.blake2b(data, digest_size=16).digest() for data in _chunks(device)]


def _compressed(device: str, before: Digests) -> int:
    """Bytes of the chunks that differ from what they were, compressed as ours are."""
    compressor = Compressor()
    total = 0
    for data, digest in zip(_chunks(device), before, strict=True):
        if hashlib.blake2b(data, digest_size=16).digest() != digest and any(data):
            total += len(compressor.compress(memoryview(data)) or data)
    return total


def _size_of_indexes(results: Results) -> None:
    """Manifest and indexes of a volume full of data that does not compress, of that data."""
    chunks = [
        region.Chunk(region.Codec.RAW, *divmod(place, CHUNKS_PER_PACK), CHUNK_BYTES, bytes(16))
        for place in range(CHUNKS_PER_REGION)
    ]
    sizes = {pack: (uuid.uuid4(), PACK_BYTES) for pack in range(CHUNKS_PER_REGION // CHUNKS_PER_PACK)}
    chunks = [chunk._replace(offset=chunk.offset * CHUNK_BYTES) for chunk in chunks]
    index = len(region.encode(region.build(0, uuid.uuid4(), chunks, sizes)))
    percent = 100 * (index + _MANIFEST_ENTRY_BYTES) / (CHUNKS_PER_REGION * CHUNK_BYTES)
    results.ratio("incremental: manifest and indexes of 1 TiB, of the data", percent, AT_MOST, 0.1, unit="%")


def _bytes_read(folder: Path) -> int:
    """Bytes that the disk below `folder` has read since the boot (Documentation/block/stat.rst: sectors of 512 bytes)."""
    device = os.stat(folder).st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(stat[2]) * 512
