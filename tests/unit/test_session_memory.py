"""Begin and end of sessions in a volume's memory: what belongs to whom, and what the dead left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from driver.core.errors import FailedPrecondition
from driver.core.ids import new_id
from driver.core.sizes import CHUNK_BYTES
from driver.host import kernel
from driver.host.locks import RecordLocks
from driver.volume import session
from driver.volume.layout import (
    HEADER_WORD,
    LOCK_SLOTS,
    PAGES_AT,
    OnFull,
    Shared,
    SlotWord,
    Word,
    create_memory,
    running_session,
)

LIMITS = session.Limits(64, 64, OnFull.THROTTLE)


@pytest.fixture
def shared() -> Iterator[Shared]:
    kernel.register_barrier()
    fd = create_memory(16 * CHUNK_BYTES, False, 2)
    made = Shared(fd)
    yield made
    made.close()
    os.close(fd)


def nothing() -> None:
    pass


def test_only_the_session_that_runs_is_ended(shared: Shared) -> None:
    """A late end of an earlier session finds its successor, and leaves it alone."""
    first, second = new_id(), new_id()
    session.begin([session.Part(shared, first, LIMITS)], 1.0)
    assert running_session(shared.fd) == first
    session.end(session.Part(shared, first), 1.0, nothing)
    session.begin([session.Part(shared, second, LIMITS)], 1.0)
    shared.chunks[3] = 7
    session.end(session.Part(shared, first), 1.0, lambda: pytest.fail("the spill file is the second session's"))
    assert (running_session(shared.fd), shared.chunks[3]) == (second, 7)
    session.end(session.Part(shared, second), 1.0, nothing)
    assert (running_session(shared.fd), shared.chunks[3]) == (None, 0)


def test_of_one_volume_one_session_at_a_time(shared: Shared) -> None:
    session.begin([session.Part(shared, new_id(), LIMITS)], 1.0)
    with pytest.raises(FailedPrecondition, match="another session"):
        session.begin([session.Part(shared, new_id(), LIMITS)], 1.0)


def test_a_session_gives_all_its_pages_back(shared: Shared) -> None:
    of = session.Part(shared, new_id(), LIMITS)
    before = os.fstat(shared.fd).st_blocks
    session.begin([of], 1.0)
    shared.bytes[PAGES_AT : PAGES_AT + (9 << 20)] = b"x" * (9 << 20)
    shared.regions[0] = 1
    shared.owners[5] = 1
    assert os.fstat(shared.fd).st_blocks >= before + (9 << 11)
    session.end(of, 1.0, nothing)
    assert os.fstat(shared.fd).st_blocks <= before + 16
    assert not any(shared.bytes[PAGES_AT : PAGES_AT + (9 << 20)])


def test_a_cut_does_not_wait_for_a_write_of_a_dead_process(shared: Shared) -> None:
    shared.slot_words(1)[SlotWord.ADMITTED] = 1
    session.begin([session.Part(shared, new_id(), LIMITS)], 0.2)
    assert shared.slot_words(1)[SlotWord.ADMITTED] == 0


def test_a_cut_waits_for_a_write_of_a_living_process_and_gives_up(shared: Shared) -> None:
    life = RecordLocks(shared.fd)
    life.acquire(LOCK_SLOTS, 2)
    shared.slot_words(1)[SlotWord.ADMITTED] = 1
    with pytest.raises(FailedPrecondition, match="in hand"):
        session.begin([session.Part(shared, new_id(), LIMITS)], 0.2)
    assert (running_session(shared.fd), shared.words[Word.GATE]) == (None, 0)
    assert shared.slot_words(1)[SlotWord.ADMITTED] == 1
    life.close()


def test_requests_of_a_connection_that_ended_are_not_done_again(shared: Shared) -> None:
    words = shared.slot_words(1)
    for word in (HEADER_WORD, SlotWord.RESULT, SlotWord.ADMITTED):
        words[word] = 1
    session.forget_requests(shared)
    assert not any(words[word] for word in (HEADER_WORD, SlotWord.RESULT, SlotWord.ADMITTED))
