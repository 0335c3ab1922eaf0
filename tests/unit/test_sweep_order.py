"""Which chunks a sweep visits first, and how fast it may go."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

import pytest

from driver.core.sizes import CHUNK_BYTES, UNIT_BYTES
from driver.host.locks import RecordLocks
from driver.transfer.packbuffer import Kind, PackBuffers, memory_bytes
from driver.volume.backing import BackingFile
from driver.volume.capture import Capture
from driver.volume.layout import SEALED, SPILL_PREIMAGES, Shared, SlotWord, Word
from driver.volume.order import Order
from driver.volume.pace import SLICES_MAX, Pace
from driver.volume.sweep import Sweeper
from tests.memory import served_memory

CHUNKS = 16


@pytest.fixture
def shared() -> Iterator[Shared]:
    memory = served_memory(CHUNKS * CHUNK_BYTES, False, 1)
    view = Shared(memory)
    view.words[Word.SESSION] = 1
    view.words[Word.SESSION_BYTES] = CHUNKS * CHUNK_BYTES
    view.words[Word.MEMORY_LIMIT] = view.words[Word.MEMORY_TOP] = 64
    yield view
    view.close()
    os.close(memory)


@pytest.fixture
def backing() -> Iterator[int]:
    fd = os.memfd_create("backing")
    os.write(fd, os.urandom(CHUNKS * CHUNK_BYTES))
    yield fd
    os.close(fd)


def capture(shared: Shared, backing: int, units: list[tuple[int, int]]) -> None:
    """Capture units, given as (chunk, unit), one after another."""
    catching = Capture(shared, 0, shared.slot_words(0), BackingFile(backing), RecordLocks(shared.fd), None)
    for chunk, unit in units:
        catching.before_write(chunk * CHUNK_BYTES + unit * UNIT_BYTES, UNIT_BYTES)


def test_captured_chunks_come_first_in_the_order_of_their_capture(shared: Shared, backing: int) -> None:
    capture(shared, backing, [(9, 0), (3, 1), (9, 2), (12, 3)])
    order = Order(shared, RecordLocks(shared.fd), CHUNKS)
    seen = []
    while (chunk := order.captured()) is not None:
        seen.append(chunk)
        shared.chunks[chunk] = SEALED
    assert seen == [9, 3, 12]
    assert order.by_position() == 0


def test_a_filling_memory_is_freed_by_the_chunk_that_holds_most(shared: Shared, backing: int) -> None:
    capture(shared, backing, [(9, 0), (3, 1), (3, 2), (3, 4), (9, 2), (12, 3)])
    order = Order(shared, RecordLocks(shared.fd), CHUNKS)
    seen = []
    while (chunk := order.most_captured()) is not None:
        seen.append(chunk)
        shared.chunks[chunk] = SEALED
    assert seen == [3, 9, 12]


def test_a_sweep_seals_captured_chunks_then_all_others(shared: Shared, backing: int) -> None:
    capture(shared, backing, [(9, 0), (3, 1)])
    raw = os.memfd_create("packs")
    os.ftruncate(raw, memory_bytes(1))
    packs = PackBuffers(raw)
    Sweeper(shared, packs, BackingFile(backing), backing, RecordLocks(shared.fd), Pace(shared, 0)).run()
    sealed = [entry.chunk for entry in packs.entries(0) if entry.kind is Kind.DATA]
    assert sealed == [9, 10, 3, 4, 0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 14, 15]
    packs.close()
    os.close(raw)


def test_a_chunk_that_is_taken_is_passed_over_and_its_region_is_not_finished(shared: Shared, backing: int) -> None:
    capture(shared, backing, [(9, 0), (3, 1), (9, 2)])
    order = Order(shared, RecordLocks(shared.fd), CHUNKS)
    taken: set[int] = set()
    seen = []
    while (chunk := order.next(taken)) is not None:
        seen.append(chunk)
        taken.add(chunk)
    assert seen == [9, 3, 0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15]
    assert not shared.regions[0]
    assert order.next() == 9
    for chunk in taken:
        shared.chunks[chunk] = SEALED
    assert order.next() is None
    assert shared.regions[0]


def test_several_slices_are_read_at_once_while_nobody_uses_the_volume(shared: Shared) -> None:
    pace = Pace(shared, 1_000_000)
    assert pace.slices() == SLICES_MAX
    words = shared.slot_words(0)
    words[SlotWord.LATENCY], words[SlotWord.LAST] = 100_000, time.perf_counter_ns() + 10**12  # however late it is looked at
    assert pace.slices() == 1


def test_reads_at_once_have_all_ended_when_one_fails(backing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers are used for something else then."""
    file = BackingFile(backing)
    done = []

    def read(buffer: memoryview, offset: int) -> None:
        if offset == 0:
            raise OSError(errno.EIO, "bad sector")
        time.sleep(0.1)
        done.append(offset)

    monkeypatch.setattr(file, "read", read)
    with pytest.raises(OSError, match="bad sector"):
        file.read_all([(memoryview(bytearray(512)), offset) for offset in (0, 512, 1024)])
    assert sorted(done) == [512, 1024]


def test_a_pace_counts_bytes_and_nothing_for_holes(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driver.volume.pace._BACKLOG_SECONDS", 1000.0)  # however long this test stands still
    pace = Pace(shared, 1_000_000_000)
    pace.after(0)
    due = pace.due
    pace.after(1000)
    pace.after(3000)
    assert pace.due - due == pytest.approx(4e-6)
    assert pace.due < time.monotonic() + 1


def test_an_unused_spill_file_is_not_searched(shared: Shared, backing: int) -> None:
    """Its owners would take a MiB of memory for nothing."""
    shared.words[Word.SPILL_LIMIT] = SPILL_PREIMAGES
    capture(shared, backing, [(9, 0)])
    order = Order(shared, RecordLocks(shared.fd), CHUNKS)
    before = os.fstat(shared.fd).st_blocks
    assert order.captured() == 9
    shared.chunks[9] = SEALED
    assert order.captured() is None
    assert os.fstat(shared.fd).st_blocks == before
