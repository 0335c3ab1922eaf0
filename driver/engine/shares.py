"""How the sessions of a node share the memory that its cap allows: fairly, and never more than the cap. Any thread.

Each session's part is its pack buffers, which it has from its start on, and slots for pre-images, whose number changes as
other sessions come and go: equal parts, where nobody gets more than it can use (max-min fairness). Who loses slots that it
holds gives them back as its chunks are sealed; until then nobody else is given them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from driver.core.errors import AlreadyExists, FailedPrecondition, NotFound
from driver.core.sizes import UNIT_BYTES, format_size
from driver.engine.meter import Meter
from driver.engine.records import SessionRecord
from driver.engine.settings import SESSION_BYTES_MIN, Settings, divide, memory_for
from driver.engine.table import RUNNING, Table
from driver.transfer.packbuffer import BUFFER_BYTES


@dataclass(frozen=True, slots=True)
class Claim:
    """A session's, in bytes: the least and the most that are of use to it, and what nobody else may have at present."""

    least: int
    most: int
    held: int = 0


def fair(cap: int, claims: Sequence[Claim]) -> list[int]:
    """Equal parts of `cap`, but for those who cannot use as much or need more. Pure.

    The sum is at most the cap, unless the least of all is more.
    """
    parts = [claim.least for claim in claims]
    left = cap - sum(parts)
    open_ = [number for number, claim in enumerate(claims) if claim.most > claim.least]
    while open_ and left > 0:
        lowest = min(parts[number] for number in open_)
        lowly = [number for number in open_ if parts[number] == lowest]
        above = [parts[number] for number in open_ if parts[number] > lowest]
        level = min([lowest + left // len(lowly), *above, *(claims[number].most for number in lowly)])
        if level == lowest:
            break
        for number in lowly:
            parts[number] = level
        left -= (level - lowest) * len(lowly)
        open_ = [number for number in open_ if parts[number] < claims[number].most]
    return parts


def grants(cap: int, claims: Sequence[Claim]) -> list[int]:
    """The parts that can be had now: fair ones, as far as others hold nothing of them. The poorest is served first. Pure."""
    parts = fair(cap, claims)
    free = cap - sum(claim.held for claim in claims)
    granted = [min(part, claim.held) for part, claim in zip(parts, claims, strict=True)]
    for number in sorted(range(len(claims)), key=lambda number: granted[number]):
        more = max(0, min(parts[number] - granted[number], free))
        granted[number] += more
        free -= more
    return granted


class Shares:
    """The shares of the sessions in the table."""

    def __init__(self, settings: Settings, table: Table) -> None:
        self._settings = settings
        self._table = table
        self._lock = threading.Lock()  # one division at a time

    def admit(self, record: SessionRecord) -> SessionRecord:
        """Give a new session its share and its place in the table.

        Raises FailedPrecondition if there is too little left, AlreadyExists if a snapshot of another volume took the name at
        the same moment.
        """
        with self._lock:
            record = record.changed(budget_bytes=self._divide(record))
            if not self._table.add(record):
                raise AlreadyExists(f"snapshot {record.name!r} is being made of another volume", "take another name")
        return record

    def settle(self) -> None:
        """Divide anew. Nothing happens while another thread does."""
        if self._lock.acquire(blocking=False):
            try:
                self._divide(None)
            finally:
                self._lock.release()

    def _divide(self, new: SessionRecord | None) -> int:
        """The part of a new session, 0 without one; those that run get theirs, the ones that lose first."""
        cap = self._settings.node_bytes
        running = [(record, self._meter(record)) for record in self._table.all() if record.state in RUNNING]
        claims = [self._claim(record, meter) for record, meter in running]
        if new is not None:
            most = min(self._settings.session_bytes, max(memory_for(new.size_bytes), SESSION_BYTES_MIN))
            claims.append(Claim(SESSION_BYTES_MIN, most))
        for (record, meter), claim, share in zip(running, claims, fair(cap, claims), strict=False):
            if share < claim.held:
                _resize(record, meter, share)
        claims[: len(running)] = [self._claim(record, meter) for record, meter in running]
        granted = grants(cap, claims)
        for (record, meter), share in zip(running, granted, strict=False):
            _resize(record, meter, share)
        if new is None:
            return 0
        if granted[-1] < SESSION_BYTES_MIN:
            raise FailedPrecondition(
                f"running snapshots hold {format_size(sum(claim.held for claim in claims))} of the "
                f"{format_size(cap)} that sessions may use on this node",
                "wait until one has ended, or raise --node-memory",
            )
        return granted[-1]

    def _claim(self, record: SessionRecord, meter: Meter | None) -> Claim:
        held = meter.held_slots() if meter is not None else None
        if meter is None or held is None:  # it is about to begin, with what was granted to it
            return Claim(record.budget_bytes, record.budget_bytes, record.budget_bytes)
        packs = _packs_bytes(record)
        least = packs + SESSION_BYTES_MIN - BUFFER_BYTES
        most = max(least, min(self._settings.session_bytes, memory_for(record.size_bytes)))
        return Claim(least, least if meter.swept() else most, packs + held * UNIT_BYTES)

    def _meter(self, record: SessionRecord) -> Meter | None:
        if record.state != "uploading":
            return None
        try:
            return self._table.meter(record)
        except NotFound:
            return None


def _packs_bytes(record: SessionRecord) -> int:
    return divide(record.budget_bytes).packs * BUFFER_BYTES


def _resize(record: SessionRecord, meter: Meter | None, share: int) -> None:
    if meter is not None:
        meter.resize(record.id, max(0, share - _packs_bytes(record)) // UNIT_BYTES)
