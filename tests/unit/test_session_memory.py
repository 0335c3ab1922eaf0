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
    PAGE,
    PAGES_AT,
    OnFull,
    Shared,
    SlotWord,
    Word,
    running_session,
)
from driver.volume.preimages import Slots, recount, resize
from tests.memory import served_memory

LIMITS = session.Limits(64, 64, OnFull.THROTTLE)


@pytest.fixture
def shared() -> Iterator[Shared]:
    kernel.register_barrier()
    fd = served_memory(16 * CHUNK_BYTES, False, 2)
    made = Shared(fd)
    yield made
    made.close()
    os.close(fd)


def nothing() -> None:
    pass


def test_only_the_session_that_runs_is_ended(shared: Shared) -> None:
    """A late end of an earlier session finds its successor, and leaves it alone."""
    first, second = new_id(), new_id()
    session.begin([session.Part(shared, first, LIMITS)], 60.0)
    assert running_session(shared.fd) == first
    session.end(session.Part(shared, first), 60.0, nothing)
    session.begin([session.Part(shared, second, LIMITS)], 60.0)
    shared.chunks[3] = 7
    session.end(session.Part(shared, first), 60.0, lambda: pytest.fail("the spill file is the second session's"))
    assert (running_session(shared.fd), shared.chunks[3]) == (second, 7)
    session.end(session.Part(shared, second), 60.0, nothing)
    assert (running_session(shared.fd), shared.chunks[3]) == (None, 0)


def test_of_one_volume_one_session_at_a_time(shared: Shared) -> None:
    session.begin([session.Part(shared, new_id(), LIMITS)], 60.0)
    with pytest.raises(FailedPrecondition, match="another session"):
        session.begin([session.Part(shared, new_id(), LIMITS)], 60.0)


def test_a_session_gives_all_its_pages_back(shared: Shared) -> None:
    of = session.Part(shared, new_id(), LIMITS)
    before = os.fstat(shared.fd).st_blocks
    session.begin([of], 60.0)
    shared.bytes[PAGES_AT : PAGES_AT + (9 << 20)] = b"x" * (9 << 20)
    shared.regions[0] = 1
    shared.owners[5] = 1
    assert os.fstat(shared.fd).st_blocks >= before + (9 << 11)
    session.end(of, 60.0, nothing)
    assert os.fstat(shared.fd).st_blocks <= before + 16
    assert not any(shared.bytes[PAGES_AT : PAGES_AT + (9 << 20)])


def test_a_cut_does_not_wait_for_a_write_of_a_dead_process(shared: Shared) -> None:
    shared.slot_words(1)[SlotWord.ADMITTED] = 1
    session.begin([session.Part(shared, new_id(), LIMITS)], 60.0)
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


def test_a_cut_waits_for_the_slots_that_a_volume_is_served_with_now(shared: Shared) -> None:
    """The memory outlives a detach while a session runs; more processes may serve the volume afterwards."""
    session.set_slots(shared, 8)
    life = RecordLocks(shared.fd)
    life.acquire(LOCK_SLOTS, 8)
    shared.slot_words(7)[SlotWord.ADMITTED] = 1
    with pytest.raises(FailedPrecondition, match="in hand"):
        session.begin([session.Part(shared, new_id(), LIMITS)], 0.2)
    life.close()


def test_an_end_that_was_broken_off_is_gone_through_again(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its helper was killed after the store that ends the session."""
    of = session.Part(shared, new_id(), LIMITS)
    session.begin([of], 60.0)
    shared.bytes[PAGES_AT : PAGES_AT + PAGE] = b"x" * PAGE
    freed: list[str] = []
    with monkeypatch.context() as broken:
        broken.setattr(Shared, "clear_session", lambda self: (_ for _ in ()).throw(ProcessLookupError))
        with pytest.raises(ProcessLookupError):
            session.end(of, 60.0, lambda: freed.append("too early"))
    assert (running_session(shared.fd), freed) == (None, [])
    session.end(of, 60.0, lambda: freed.append("spill"))
    assert (any(shared.bytes[PAGES_AT : PAGES_AT + PAGE]), freed) == (False, ["spill"])
    session.end(of, 60.0, lambda: pytest.fail("it has ended"))


def test_requests_of_a_connection_that_ended_are_not_done_again(shared: Shared) -> None:
    words = shared.slot_words(1)
    for word in (HEADER_WORD, SlotWord.RESULT, SlotWord.ADMITTED):
        words[word] = 1
    session.set_slots(shared, 1)
    assert not any(words[word] for word in (HEADER_WORD, SlotWord.RESULT, SlotWord.ADMITTED))


def blocks(shared: Shared) -> int:
    """KiB of memory that the volume's memfd takes."""
    return os.fstat(shared.fd).st_blocks // 2


def test_a_smaller_limit_gives_pages_of_free_slots_back_and_keeps_those_in_use(shared: Shared) -> None:
    of = new_id()
    session.begin([session.Part(shared, of, session.Limits(4096, 0, OnFull.THROTTLE))], 60.0)
    locks = RecordLocks(shared.fd)
    slots = Slots(shared, locks, 1)
    held = [slots.reserve(16) for _ in range(4096 // 16)]
    assert None not in held
    shared.page(0, 4096)[:] = b"x" * (4096 * 4096)
    before = blocks(shared)
    for first in range(0, 4096, 16):
        if first != 3200:
            slots.free(first, 16)
    resize(shared, locks, of, 1024)
    assert (shared.words[Word.MEMORY_LIMIT], shared.words[Word.MEMORY_TOP]) == (1024, 3216)
    assert bytes(shared.page(3200, 16)) == b"x" * (16 * 4096)
    assert blocks(shared) <= before - (4096 - 1024 - 16) * 4
    recount(shared, locks)
    assert shared.words[Word.USED] == 16
    taken = [slots.reserve(16) for _ in range(63)]
    assert max(number for number in taken if number is not None) < 1024
    slots.free(3200, 16)
    resize(shared, locks, of, 1024)
    assert (shared.words[Word.MEMORY_TOP], bytes(shared.page(3200))) == (1024, bytes(4096))
    resize(shared, locks, of, 2048)
    assert [slots.reserve(16) for _ in range(65)].count(None) == 0
    locks.close()


def test_a_late_change_of_an_ended_sessions_limit_does_nothing(shared: Shared) -> None:
    first, second = new_id(), new_id()
    session.begin([session.Part(shared, first, LIMITS)], 60.0)
    session.end(session.Part(shared, first), 60.0, nothing)
    locks = RecordLocks(shared.fd)
    session.begin([session.Part(shared, second, LIMITS)], 60.0)
    resize(shared, locks, first, 8)
    assert shared.words[Word.MEMORY_LIMIT] == shared.words[Word.MEMORY_TOP] == 64
    locks.close()
