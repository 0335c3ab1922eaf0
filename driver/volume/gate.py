"""The gate that every write passes, and that a cut closes.

A writer stores ADMITTED = 1 and then looks at GATE; a cut stores GATE = 1, makes every processor see it (membarrier), and
then looks at all ADMITTED: one of the two sees the other. The closer holds LOCK_GATE, which the kernel drops if it dies:
who waits at the gate waits for that lock, and opens a gate that nobody holds.
"""

from __future__ import annotations

import time
from typing import Final

from driver.core.errors import FailedPrecondition
from driver.host.kernel import barrier_everywhere
from driver.volume.layout import LOCK_GATE, Shared, SlotWord, Word
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
    shared.words[Word.GATE] = 0
    locks.release(LOCK_GATE)


def drain(volumes: list[Shared], deadline_seconds: float) -> None:
    """Wait until no write is in hand behind the closed gates of `volumes`. Raises FailedPrecondition after the deadline."""
    barrier_everywhere()
    deadline = time.monotonic() + deadline_seconds
    for shared in volumes:
        for number in range(shared.words[Word.SLOT_COUNT]):
            admitted = shared.slot_words(number)
            while admitted[SlotWord.ADMITTED]:
                if time.monotonic() > deadline:
                    raise FailedPrecondition(
                        f"a write has been in hand for {deadline_seconds:.1f} s: the node's disk is stuck or very slow",
                        "look at the disk (iostat -x, dmesg), then try again",
                    )
                time.sleep(_POLL_SECONDS)
