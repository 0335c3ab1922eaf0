"""What one run of the benchmarks is made of: how often, how long, how large, where. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

UPLOAD_RATE: Final = "100MB"
"""The engine's upload rate in the rows that upload at 100 MB/s."""
UPLOAD_BYTES_PER_SECOND: Final = 100_000_000
RECEIVED_BYTES_PER_SECOND: Final = 95_000_000
"""A row of such a session counts only if the server received at least this throughout."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` is the length of one fio run; `quick` takes a quarter of each size, to try the harness itself."""

    rounds: int
    seconds: int
    quick: bool
    store: str
    folder: Path
    """Work folder, on the file system that all subjects stand on; everything below it is ours."""
    build: Path
    docs: Path

    def scaled(self, size_bytes: int) -> int:
        return size_bytes // 4 if self.quick else size_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the file or volume of the rows without a session."""
        return self.scaled(GIB)

    @property
    def working_set_bytes(self) -> int:
        """What a session's load writes to."""
        return self.scaled(GIB)

    @property
    def session_bytes(self) -> int:
        """Size of the volume of the sessions at 100 MB/s: three working sets, the load's in the middle."""
        return 3 * self.working_set_bytes


def rotated(items: list[T], by: int) -> list[T]:
    """`items`, begun at another one in each round, so that none always comes first."""
    by %= len(items)
    return items[by:] + items[:by]
