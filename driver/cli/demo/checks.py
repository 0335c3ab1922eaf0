"""What must be true of the restored volume. Each check raises DataCorrupt with what it found."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from driver.cli.demo.writer import Transaction
from driver.core.errors import DataCorrupt
from driver.host.run import run


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every regular file below `folder`, by its relative path; of a link, where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check_files(folder: Path, expected: Mapping[str, str]) -> int:
    """All files are as they were; how many."""
    found = digests(folder)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise DataCorrupt(f"{len(differing)} restored files differ, the first is {differing[0]}")
    return len(found)


def check_database(path: Path, log: list[Transaction], cut_began: int, cut_ended: int) -> int:
    """The database is whole and holds what was committed before the cut and nothing begun after it; how many rows.

    `cut_began` and `cut_ended` (nanoseconds since the epoch) enclose the cut.
    """
    with contextlib.closing(sqlite3.connect(path)) as connection:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise DataCorrupt(f"PRAGMA integrity_check of the restored database says: {verdict}")
        rows = {number for (number,) in connection.execute("SELECT number FROM log")}
    lost = [t.number for t in log if t.done < cut_began and t.number not in rows]
    if lost:
        raise DataCorrupt(f"{len(lost)} transactions committed before the cut are missing, the first is {lost[0]}")
    begun_after = [t.number for t in log if t.begun > cut_ended and t.number in rows]
    if begun_after:
        raise DataCorrupt(f"{len(begun_after)} transactions begun after the cut are there, the first is {begun_after[0]}")
    if rows != set(range(1, len(rows) + 1)):
        raise DataCorrupt("the restored database has gaps between its transactions")
    return len(rows)


def check_file_system(device: str) -> None:
    """e2fsck finds nothing to mend on the unmounted device."""
    run(["e2fsck", "-fn", device])
