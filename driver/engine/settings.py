"""Settings of the engine service, from its command line. Sizes are bytes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from driver.core.errors import InvalidArgument
from driver.core.sizes import GIB, MIB, PACK_BYTES, UNIT_BYTES, format_size, parse_size
from driver.transfer.packbuffer import BUFFER_BYTES
from driver.volume.layout import MEMORY_PREIMAGES, SLOTS_MAX, SPILL_PREIMAGES

SESSION_BYTES_MIN: Final = 32 * MIB
THREADS: Final = 8
"""Of one volume process; each has a request slot."""
SPARES: Final = 8
"""Further request slots of one volume process, in which throttled writes wait."""
PROCESSES: Final = min(2, os.cpu_count() or 1)
"""Volume processes of one volume: a second one is worth a third more IOPS, and takes 5 MiB and its request slots."""
PROCESSES_MAX: Final = SLOTS_MAX // (THREADS + SPARES)
GRACE_SECONDS: Final = 30.0
"""How long a stop waits for devices in use."""
_PACKS_MAX: Final = 4
CANNOT_START: Final = 64
"""A service that would not start a second time either exits with this and the exit code of the error."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`node_bytes` caps all sessions together, `session_bytes` and `spill_bytes` one; a rate of 0 is no limit.

    `node` is the node's name as snapshots and volume handles have it.
    """

    state: Path
    node: str = field(default_factory=lambda: os.uname().nodename, kw_only=True)
    node_bytes: int = GIB
    session_bytes: int = 256 * MIB
    spill_bytes: int = 4 * GIB
    upload_rate: int = 0
    processes: int = PROCESSES
    grace_seconds: float = GRACE_SECONDS
    cut_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not SESSION_BYTES_MIN <= self.session_bytes <= MEMORY_PREIMAGES * UNIT_BYTES:
            raise InvalidArgument(
                f"a session's memory of {format_size(self.session_bytes)} is out of bounds", "use 32Mi to 1Gi"
            )
        if not 0 <= self.spill_bytes <= SPILL_PREIMAGES * UNIT_BYTES:
            raise InvalidArgument(f"a spill of {format_size(self.spill_bytes)} is out of bounds", "use 0 to 4Gi")
        if self.node_bytes < self.session_bytes:
            raise InvalidArgument("the node's cap is below one session's memory", "raise --node-memory")
        if not 1 <= self.processes <= PROCESSES_MAX:
            raise InvalidArgument(f"{self.processes} processes a volume", f"use 1 to {PROCESSES_MAX}")


@dataclass(frozen=True, slots=True)
class Budget:
    """How a session's memory is divided: pack buffers first, pre-image slots with the rest."""

    packs: int
    preimages: int


def divide(session_bytes: int) -> Budget:
    """A quarter of the memory is pack buffers, at least 1 and at most 4."""
    packs = max(1, min(_PACKS_MAX, session_bytes // 4 // PACK_BYTES))
    return Budget(packs, (session_bytes - packs * BUFFER_BYTES) // UNIT_BYTES)


def memory_for(volume_bytes: int) -> int:
    """The most that a session of a volume of that size can make use of."""
    return volume_bytes + _PACKS_MAX * BUFFER_BYTES


def parser() -> argparse.ArgumentParser:
    """The engine service's command line."""
    options = argparse.ArgumentParser(prog="stillframe-engine", allow_abbrev=False)
    options.add_argument("--state", required=True)
    options.add_argument("--keeper", type=int, required=True, help="descriptor of the socket to the keeper")
    options.add_argument("--node", default=os.uname().nodename)
    options.add_argument("--node-memory", default="1Gi")
    options.add_argument("--session-memory", default="256Mi")
    options.add_argument("--spill", default="4Gi")
    options.add_argument("--upload-rate", default="0")
    options.add_argument("--processes", type=int, default=PROCESSES)
    options.add_argument("--grace", type=float, default=GRACE_SECONDS)
    return options


def parse(arguments: Sequence[str]) -> tuple[Settings, int]:
    """The settings, and the descriptor of the keeper's socket. Raises InvalidArgument."""
    given = parser().parse_args(arguments)
    settings = Settings(
        state=Path(given.state),
        node=given.node,
        node_bytes=parse_size(given.node_memory),
        session_bytes=parse_size(given.session_memory),
        spill_bytes=parse_size(given.spill),
        upload_rate=parse_size(given.upload_rate),
        processes=given.processes,
        grace_seconds=given.grace,
    )
    return settings, given.keeper
