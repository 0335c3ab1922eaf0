"""Begin and end sessions: the cut. For a helper process of the keeper, single-threaded.

Several volumes are cut at one instant: all gates are closed, all writes in hand drained, all session words stored, all
gates opened. Each SESSION word is one store, so a helper that dies leaves each volume before its cut or after it, and its
gates open themselves (`gate`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from driver.core.errors import FailedPrecondition
from driver.host.locks import RecordLocks
from driver.volume import gate
from driver.volume.layout import Failure, OnFull, Shared, Word


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may hold, in pre-image slots of 4 KiB: in memory and in the spill file."""

    memory: int
    spill: int
    on_full: OnFull


def begin(volumes: list[Shared], limits: Limits, deadline_seconds: float) -> float:
    """Cut `volumes` at one instant; its time (seconds since the epoch).

    Raises FailedPrecondition if a session runs, or if writes in hand do not end in time (then nothing was cut).
    """

    def prepare(shared: Shared) -> None:
        shared.clear_session()
        shared.words[Word.FAILED] = Failure.NONE
        shared.words[Word.FAILED_ERRNO] = 0
        shared.words[Word.ON_FULL] = limits.on_full
        shared.words[Word.MEMORY_LIMIT] = limits.memory
        shared.words[Word.SPILL_LIMIT] = limits.spill
        for word in (Word.USED, Word.PEAK, Word.SPILL_USED, Word.SWEPT_CHUNKS):
            shared.words[word] = 0

    def flip() -> float:
        if any(shared.words[Word.SESSION] for shared in volumes):
            raise FailedPrecondition("another session of this volume runs")
        for shared in volumes:
            prepare(shared)
        now = time.time()
        for shared in volumes:
            shared.words[Word.SESSION_BYTES] = shared.words[Word.SIZE_BYTES]
            shared.words[Word.LAST_SESSION] += 1
            shared.words[Word.SESSION] = shared.words[Word.LAST_SESSION]
        return now

    return _stopped(volumes, deadline_seconds, flip)


def end(volumes: list[Shared], deadline_seconds: float) -> None:
    """End the sessions of `volumes`, after a drain: nobody may still read into a slot. Memory is given back.

    Their sweepers are dead. Raises FailedPrecondition after the deadline; it may be tried again.
    """

    def flip() -> float:
        for shared in volumes:
            shared.words[Word.SESSION] = 0
        return 0.0

    _stopped(volumes, deadline_seconds, flip)
    for shared in volumes:
        shared.clear_session()
        shared.words[Word.USED] = 0
        shared.words[Word.SPILL_USED] = 0


def _stopped(volumes: list[Shared], deadline_seconds: float, flip: Callable[[], float]) -> float:
    """Run `flip` while no write is in hand on any of `volumes`."""
    locks = [RecordLocks(shared.fd) for shared in volumes]
    started = time.perf_counter_ns()
    closed: list[tuple[Shared, RecordLocks]] = []
    try:
        for shared, lock in zip(volumes, locks, strict=True):
            gate.close(shared, lock)
            closed.append((shared, lock))
        gate.drain(volumes, deadline_seconds)
        result = flip()
    finally:
        for shared, lock in closed:
            shared.words[Word.CUT_NANOSECONDS] = time.perf_counter_ns() - started
            gate.open_again(shared, lock)
        for lock in locks:
            lock.close()
    return result
