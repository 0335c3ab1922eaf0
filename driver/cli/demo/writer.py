"""The demo's application: `python -m driver.cli.demo.writer DATABASE LOG`.

Commits one numbered row after another to SQLite in WAL mode with synchronous=FULL until SIGTERM, and logs of each, outside
the volume: its number, when its commit began and when it had returned (nanoseconds since the epoch, monotonic within a run).
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PAUSE_SECONDS: Final = 0.0005
_ROW_BYTES: Final = 300


@dataclass(frozen=True, slots=True)
class Transaction:
    """One committed row; times in nanoseconds since the epoch."""

    number: int
    begun: int
    done: int


def read_log(path: Path) -> list[Transaction]:
    """What the writer has logged so far; a last line that is not whole yet is left out."""
    lines = path.read_text().split("\n")[:-1]
    return [Transaction(*map(int, line.split())) for line in lines]


def open_database(path: str) -> sqlite3.Connection:
    """The database, made if it is not there."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS log (number INTEGER PRIMARY KEY, data BLOB)")
    return connection


def main() -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    connection = open_database(sys.argv[1])
    offset = time.time_ns() - time.monotonic_ns()
    with open(sys.argv[2], "a", buffering=1) as log:
        number = 0
        while not stopping:
            number += 1
            begun = time.monotonic_ns()
            connection.execute("INSERT INTO log VALUES (?, ?)", (number, os.urandom(_ROW_BYTES)))
            log.write(f"{number} {begun + offset} {time.monotonic_ns() + offset}\n")
            time.sleep(_PAUSE_SECONDS)
    connection.close()


if __name__ == "__main__":
    main()
