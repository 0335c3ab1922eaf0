"""The gate that every write passes, and that a cut closes.

A writer stores ADMITTED = 1 and then looks at GATE; a cut stores GATE = 1, makes every processor see it (membarrier), and
then looks at all ADMITTED: one of the two sees the other. The closer holds LOCK_GATE, which the kernel drops if it dies:
who waits at the gate waits for that lock, and opens a gate that nobody holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from driver.core.errors import FailedPrecondition
from driver.host.kernel import barrier_everywhere
from driver.volume.layout import HEADER_WORD, LOCK_GATE, LOCK_SLOTS, Shared, SlotWord, Word
from driver.volume.preimages import Locks

_POLL_SECONDS: Final = 0.00005


def wait_until_open(shared: Shared, locks: Locks) -> None:
    """Return when the gate was open for a moment. The caller is not admitted. Any volume thread."""
    locks.acquire(LOCK_GATE)
    shared.words[Word.GATE] = 0
    locks.release(LOCK_GATE)


def close(shared: Shared, locks: Locks) -> None:
    """Close the gate: no write is admitted any more; those that were may still run."""
    locks.acquire(LOCK_GATE)
    shared.words[Word.GATE] = 1


def open_again(shared: Shared, locks: Locks) -> None:
    """Open a gate that we closed."""
    shared.words[Word.GATE] = 0
    locks.release(LOCK_GATE)


def drain(volumes: Sequence[tuple[Shared, Locks]], deadline_seconds: float) -> None:
    """Wait until no write is in hand behind the closed gates of `volumes`. Raises FailedPrecondition after the deadline.

    A write whose process is dead is in hand no more: a successor does it again, from the gate on.
    """
    barrier_everywhere()
    deadline = time.monotonic() + deadline_seconds
    for shared, locks in volumes:
        for number in range(shared.words[Word.SLOT_COUNT]):
            words = shared.slot_words(number)
            while words[SlotWord.ADMITTED] and not _was_left(words, locks, number):
                if time.monotonic() > deadline:
                    raise FailedPrecondition(
                        f"a write has been in hand for {deadline_seconds:.1f} s: the node's disk is stuck or very slow",
                        "look at the disk (iostat -x, dmesg), then try again",
                    )
                time.sleep(_POLL_SECONDS)


def _was_left(words: memoryview, locks: Locks, number: int) -> bool:
    """Whether the slot's process is dead; then its admission is withdrawn."""
    if not locks.try_acquire(LOCK_SLOTS + number):
        return False
    words[SlotWord.ADMITTED] = 0
    locks.release(LOCK_SLOTS + number)
    return True


def empty(words: memoryview) -> None:
    """Make a request slot FREE, whatever was in it. Nobody serves it."""
    words[HEADER_WORD] = 0
    words[SlotWord.RESULT] = 0
    words[SlotWord.ADMITTED] = 0
