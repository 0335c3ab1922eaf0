"""Begin and end sessions: the cut. For a helper process of the keeper, single-threaded.

Several volumes are cut at one instant: all gates are closed, all writes in hand drained, all session words stored, all
gates opened. Each SESSION word is one store, so a helper that dies leaves each volume before its cut or after it, and its
gates open themselves (`gate`). Volumes are given in one order by all callers: their locks are taken in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from driver.core.errors import FailedPrecondition
from driver.host.locks import RecordLocks
from driver.volume import changes, gate
from driver.volume.layout import LOCK_PREIMAGES, LOCK_SESSION, LOCK_SLOTS, SLOTS_MAX, Failure, OnFull, Shared, Word


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may hold, in pre-image slots of 4 KiB: in memory and in the spill file. `parent_chunks` is how many
    chunks its parent has, if that is the volume's base: of those, only what was written since is read."""

    memory: int
    spill: int
    on_full: OnFull
    parent_chunks: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A volume's memory, the UUID of the session to begin or to end on it, and what one to begin may hold."""

    shared: Shared
    session: str
    limits: Limits = Limits(0, 0, OnFull.THROTTLE)


def begin(parts: Sequence[Part], deadline_seconds: float) -> float:
    """Cut the volumes at one instant; its time (seconds since the epoch).

    Raises FailedPrecondition if a session runs, or if writes in hand do not end in time (then nothing was cut).
    """

    def flip() -> float:
        now = time.time()
        for part in parts:
            words = part.shared.words
            words[Word.SESSION_BYTES] = words[Word.SIZE_BYTES]
            words[Word.LAST_SESSION] += 1  # the dirty map of before the cut is frozen
            words[Word.SESSION] = words[Word.LAST_SESSION]
        return now

    with _sessions_locked(parts) as locks:
        if any(part.shared.words[Word.SESSION] for part in parts):
            raise FailedPrecondition("another session of this volume runs")
        for part, lock in zip(parts, locks, strict=True):
            _prepare(part, lock)
        cut = _stopped(parts, locks, deadline_seconds, flip)
        for part in parts:
            part.shared.words[Word.PENDING_CHUNKS] = changes.count_pending(part.shared)
        return cut


def _prepare(part: Part, locks: RecordLocks) -> None:
    shared = part.shared
    limits = part.limits
    shared.clear_session()
    changes.keep(shared)
    shared.words[Word.PARENT_CHUNKS] = limits.parent_chunks if shared.words[Word.BASE_KNOWN] else 0
    shared.set_session_id(part.session)
    shared.words[Word.FAILED] = Failure.NONE
    shared.words[Word.FAILED_ERRNO] = 0
    shared.words[Word.ON_FULL] = limits.on_full
    locks.acquire(LOCK_PREIMAGES)  # a late change of the last session's limit is over, or finds that it does not run
    shared.words[Word.MEMORY_LIMIT] = shared.words[Word.MEMORY_TOP] = limits.memory
    locks.release(LOCK_PREIMAGES)
    shared.words[Word.SPILL_LIMIT] = limits.spill
    shared.words[Word.SWEEP_NANOSECONDS] = time.monotonic_ns()
    for word in (Word.USED, Word.PEAK, Word.SPILL_USED, Word.SPILL_READY, Word.SWEPT_CHUNKS):
        shared.words[word] = 0


def end(
    part: Part, deadline_seconds: float, spill_is_free: Callable[[], None], *, is_base: bool = False,
    again: Iterable[Sequence[int]] = (),
) -> None:  # fmt: skip
    """End this session of this volume, after a drain: nobody may still read into a slot. Memory is given back.

    With `is_base` its snapshot is the volume's base from now on, as the volume's record says already, and the next session
    is to read the chunks `again` too, runs of (first, count); else what was written before its cut is still to be saved.
    Nothing happens if it has ended; an end that was broken off is gone through again. Its sweeper is dead. Raises
    FailedPrecondition after the deadline; it may be tried again. `spill_is_free` is called when nobody uses the spill file
    any more, and no other session can have begun to.
    """

    def flip() -> float:
        part.shared.words[Word.SESSION] = 0
        return 0.0

    with _sessions_locked([part]) as locks:
        if not part.shared.is_named(part.session):
            return
        if part.shared.words[Word.SESSION]:
            _stopped([part], locks, deadline_seconds, flip)
        part.shared.clear_session()
        if is_base:
            changes.forget(part.shared)
            changes.mark(part.shared, again)
        else:
            changes.keep(part.shared)
        part.shared.words[Word.USED] = 0
        part.shared.words[Word.SPILL_USED] = 0
        spill_is_free()
        part.shared.forget_session_id()


def hold(shared: Shared, deadline_seconds: float, work: Callable[[], bool]) -> bool:
    """What `work` returns, which is done while no write is in hand on the volume, whatever session runs.

    Raises FailedPrecondition if writes in hand do not end in time (then it was not done), and what `work` raises.
    """
    locks = RecordLocks(shared.fd)
    try:
        gate.close(shared, locks)
        try:
            gate.drain([(shared, locks)], deadline_seconds)
            return work()
        finally:
            gate.open_again(shared, locks)
    finally:
        locks.close()


def set_slots(shared: Shared, count: int) -> None:
    """A volume is going to be served with `count` request slots, all of which a cut looks at from now on. Slots used before
    are emptied: what is in them came over a connection that has ended, and whoever asked saw EIO.

    Waits until the volume's processes are dead.
    """
    locks = RecordLocks(shared.fd)
    locks.acquire(LOCK_SLOTS, SLOTS_MAX)
    try:
        for number in range(shared.words[Word.SLOT_COUNT]):
            gate.empty(shared.slot_words(number))
        shared.words[Word.SLOT_COUNT] = count
    finally:
        locks.close()


@contextlib.contextmanager
def _sessions_locked(parts: Sequence[Part]) -> Iterator[list[RecordLocks]]:
    """Hold LOCK_SESSION of every volume. The locks, a description each."""
    locks = [RecordLocks(part.shared.fd) for part in parts]
    try:
        for lock in locks:
            lock.acquire(LOCK_SESSION)
        yield locks
    finally:
        for lock in locks:
            lock.close()


def _stopped(
    parts: Sequence[Part], locks: Sequence[RecordLocks], deadline_seconds: float, flip: Callable[[], float]
) -> float:
    """Run `flip` while no write is in hand on any of the volumes."""
    started = time.perf_counter_ns()
    closed: list[tuple[Shared, RecordLocks]] = []
    try:
        for part, lock in zip(parts, locks, strict=True):
            gate.close(part.shared, lock)
            closed.append((part.shared, lock))
        gate.drain(closed, deadline_seconds)
        return flip()
    finally:
        for shared, lock in closed:
            shared.words[Word.CUT_NANOSECONDS] = time.perf_counter_ns() - started
            gate.open_again(shared, lock)
