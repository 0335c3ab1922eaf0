"""A session against a plain bytearray: random writes, discards, deaths and interleavings, switched at any line.

Invariants 1 to 4 of docs/datapath.md: reads see the last write, sealed bytes are the bytes at the cut, a unit is captured
once, memory stays within its limit.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.core.ids import new_id
from driver.core.sizes import CHUNK_BYTES, UNIT_BYTES
from driver.fuse.protocol import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from driver.transfer.packbuffer import Header, Kind, PackBuffers, State, memory_bytes
from driver.volume import changes, preimages, session
from driver.volume.capture import Parked
from driver.volume.layout import FREE, PUBLISHED, OnFull, Shared, SlotWord, Word
from driver.volume.pace import Pace
from driver.volume.preimages import recover_reserved, resize
from driver.volume.sweep import SessionFailed, Sweeper
from driver.volume.writepath import WritePath
from tests.memory import served_memory
from tests.property.scheduler import Actor, ScheduledLocks, Scheduler

CHUNKS = 6
SIZE = CHUNKS * CHUNK_BYTES
WRITERS = 3
DISCARDER, WIDE_1, WIDE_2 = 3, 4, 5
SLOTS = 6


class MemoryBacking:
    """A backing file in a bytearray, read and written in pieces between which others run."""

    def __init__(self, scheduler: Scheduler, content: bytes) -> None:
        self.content = bytearray(content)
        self.holes = [not any(content[c * CHUNK_BYTES : (c + 1) * CHUNK_BYTES]) for c in range(CHUNKS)]
        self.scheduler = scheduler

    def _pieces(self, length: int) -> list[tuple[int, int]]:
        middle = self.scheduler.random.randrange(0, length // 512 + 1) * 512
        return [(0, middle), (middle, length)]

    def read(self, buffer: memoryview, offset: int) -> None:
        for start, stop in self._pieces(len(buffer)):
            self.scheduler.current().pause()
            buffer[start:stop] = self.content[offset + start : offset + stop]

    def read_all(self, reads: Sequence[tuple[memoryview, int]]) -> None:
        """At once: a piece of one, then a piece of another."""
        left = [(buffer, offset, self._pieces(len(buffer))) for buffer, offset in reads]
        while left:
            buffer, offset, pieces = left[self.scheduler.random.randrange(len(left))]
            start, stop = pieces.pop(0)
            self.scheduler.current().pause()
            buffer[start:stop] = self.content[offset + start : offset + stop]
            left = [each for each in left if each[2]]

    def write(self, buffer: memoryview, offset: int) -> None:
        for chunk in range(offset // CHUNK_BYTES, (offset + len(buffer) - 1) // CHUNK_BYTES + 1):
            self.holes[chunk] = False
        for start, stop in self._pieces(len(buffer)):
            self.scheduler.current().pause()
            self.content[offset + start : offset + stop] = buffer[start:stop]

    def flush(self) -> None:
        pass

    def zero(self, offset: int, length: int, *, punch: bool) -> None:
        for start, stop in self._pieces(length):
            self.scheduler.current().pause()
            self.content[offset + start : offset + stop] = bytes(stop - start)
        if punch and length == CHUNK_BYTES:
            self.holes[offset // CHUNK_BYTES] = True

    def data_from(self, offset: int, end: int) -> int:
        chunk = offset // CHUNK_BYTES
        if not self.holes[chunk]:
            return offset
        while chunk * CHUNK_BYTES < end and self.holes[chunk]:
            chunk += 1
        return min(chunk * CHUNK_BYTES, end)


class Run:
    """One run: writers on ranges of their own (so that the oracle knows what each byte must be), sweeper, sender."""

    def __init__(self, seed: int, limit: int, spill: int, on_full: OnFull, *, parent: bool = False) -> None:
        self.scheduler = Scheduler(seed)
        self.random = random.Random(seed + 1)
        content = bytearray(self.random.randbytes(SIZE))
        for chunk in range(CHUNKS):
            if self.random.random() < 0.3:
                content[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES] = bytes(CHUNK_BYTES)
        self.at_parent = bytes(content)
        parent_chunks = self.random.randrange(CHUNKS + 1) if parent else 0
        written = [chunk for chunk in range(CHUNKS) if parent and self.random.random() < 0.5]
        for chunk in written:
            if self.random.random() < 0.8:  # else the same bytes again
                content[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES] = self.random.randbytes(CHUNK_BYTES)
        self.pending = {chunk for chunk in range(CHUNKS) if chunk in written or chunk >= parent_chunks}
        self.at_cut = bytes(content)
        self.now = content[:]
        self.backing = MemoryBacking(self.scheduler, bytes(content))
        self.fd = served_memory(SIZE, True, SLOTS)
        self.shared = Shared(self.fd)
        self.shared.words[Word.BASE_KNOWN] = parent
        for chunk in written:
            self.shared.dirty[0][chunk] = 1
        self.packs_fd = os.memfd_create("packs")
        os.ftruncate(self.packs_fd, memory_bytes(2))
        self.packs = PackBuffers(self.packs_fd)
        self.spill = os.memfd_create("spill")
        self.locks = ScheduledLocks(self.scheduler)
        self.sealed: dict[int, bytes] = {}
        self.limit = limit
        self.deaths = 0
        with mock.patch.object(session, "RecordLocks"):  # nobody else runs yet
            limits = session.Limits(limit, spill, on_full, parent_chunks)
            self.part = session.Part(self.shared, new_id(), limits)
            session.begin([self.part], 1.0)

    def end(self, *, is_base: bool) -> None:
        with mock.patch.object(session, "RecordLocks"):  # nobody else runs any more
            session.end(self.part, 1.0, lambda: None, is_base=is_base)

    def differs(self, before: bytes) -> set[int]:
        """The chunks that are not now what they were in `before`."""
        return {
            chunk for chunk in range(CHUNKS)
            if self.now[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            != before[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        }  # fmt: skip

    def close(self) -> None:
        self.scheduler.stop()
        self.shared.close()
        self.packs.close()
        for fd in (self.fd, self.packs_fd, self.spill):
            os.close(fd)

    def writer(self, number: int, operations: int) -> None:
        """Writes to units `number` modulo WRITERS; a successor goes on where it died."""
        todo = []
        for _ in range(operations):
            unit = self.random.randrange((SIZE - CHUNK_BYTES) // UNIT_BYTES // WRITERS) * WRITERS + number
            todo.append((unit, self.random.random() < 0.2, self.random.randbytes(UNIT_BYTES)))
        self.scheduler.add(f"mortal writer {number}", lambda: self._write(number, todo))
        self.todo = getattr(self, "todo", {})
        self.todo[f"mortal writer {number}"] = (number, todo)

    def _write(self, number: int, todo: list[tuple[int, bool, bytes]]) -> None:
        words = self.shared.slot_words(number)
        recover_reserved(self.shared, self.locks, range(number + 1, number + 2))
        words[SlotWord.ADMITTED] = 0
        path = WritePath(self.shared, number, words, self.backing, self.locks, self.spill)
        buffer = self.shared.slot(number)[4096:]
        while todo:
            unit, is_discard, data = todo[0]
            offset = unit * UNIT_BYTES
            wide = 1
            if is_discard:
                data = bytes(UNIT_BYTES * wide)
                assert path.zero(offset, UNIT_BYTES * wide, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) == 0
            else:
                buffer[: len(data)] = data
                try:
                    assert path.write(offset, buffer[: len(data)], may_wait=True) == 0
                except Parked:
                    assert not words[SlotWord.ADMITTED]
                    self.scheduler.current().pause()
                    assert path.write(offset, buffer[: len(data)]) == 0
            self.now[offset : offset + len(data)] = data
            words[SlotWord.RESULT] = 0
            assert self.backing.content[offset : offset + len(data)] == data
            todo.pop(0)

    def wide_writer(self, number: int, operations: int) -> None:
        """Captures for ranges that straddle units and chunks, and writes back what is there: nothing changes."""
        words = self.shared.slot_words(number)
        path = WritePath(self.shared, number, words, self.backing, self.locks, self.spill)
        for _ in range(operations):
            offset = self.random.randrange(SIZE // 512 - 300) * 512
            path._capture.before_write(offset, 300 * 512)

    def discarder(self) -> None:
        """Discards the last chunk, which nobody else writes, as a whole, and fills it again."""
        words = self.shared.slot_words(DISCARDER)
        path = WritePath(self.shared, DISCARDER, words, self.backing, self.locks, self.spill)
        buffer = self.shared.slot(DISCARDER)[4096:]
        start = SIZE - CHUNK_BYTES
        for data in (bytes(CHUNK_BYTES), self.random.randbytes(CHUNK_BYTES), bytes(CHUNK_BYTES)):
            if any(data):
                buffer[:CHUNK_BYTES] = data
                assert path.write(start, buffer[:CHUNK_BYTES]) == 0
            else:
                assert path.zero(start, CHUNK_BYTES, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) == 0
            words[SlotWord.RESULT] = 0
            self.now[start:] = data

    def resizer(self) -> None:
        """Changes what the session may hold in memory, as sessions on other volumes come and go."""
        session_id = self.shared.session_id()
        assert session_id is not None
        for _ in range(10):
            resize(self.shared, self.locks, session_id, self.random.randrange(self.limit + 1))
            self.scheduler.current().pause()

    def sweeper(self) -> None:
        with mock.patch("driver.volume.sweep.time.sleep", lambda seconds: self.scheduler.current().pause()):
            pace = Pace(self.shared, 0)
            pace.after = lambda length_bytes: self.scheduler.current().pause()  # type: ignore[method-assign]
            pace.slices = lambda: self.random.choice((1, 1, 2, 4))  # type: ignore[method-assign]
            Sweeper(self.shared, self.packs, self.backing, self.spill, self.locks, pace).run()

    def sender(self) -> None:
        """Takes what is sealed, as the real one does, and keeps it."""
        while True:
            self.scheduler.wait_until(
                lambda: bool(self.packs.packs_in(State.READY)) or bool(self.packs.get(Header.SWEEP_DONE))
                or bool(self.shared.words[Word.FAILED])
            )  # fmt: skip
            ready = self.packs.packs_in(State.READY)
            if not ready:
                return
            for pack in ready:
                place = 0
                for entry in self.packs.entries(pack):
                    for chunk in range(entry.chunk, entry.chunk + entry.count):
                        data = bytes(CHUNK_BYTES)
                        if entry.kind is Kind.DATA:
                            data = bytes(self.packs.data(pack, place))
                            place += 1
                        assert self.sealed.setdefault(chunk, data) == data, f"chunk {chunk} was sealed twice, differently"
                self.packs.set_state(pack, State.FREE)

    def again(self, actor: Actor) -> None:
        """Start the successor of an actor that died."""
        assert self.shared.words[Word.USED] <= self.limit
        if actor.died:
            self.deaths += 1
            if actor.name == "mortal sweeper":
                self.scheduler.add(actor.name, self.sweep)
            else:
                number, todo = self.todo[actor.name]
                self.scheduler.add(actor.name, lambda: self._write(number, todo))

    def sweep(self) -> None:
        try:
            self.sweeper()
        except SessionFailed:
            assert self.shared.words[Word.FAILED]


SEEDS = st.integers(0, 2**32)
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def finish(run: Run, kill: float) -> None:
    run.scheduler.add("mortal sweeper", run.sweep)
    run.scheduler.add("sender", run.sender)
    run.scheduler.run(run.again, kill)
    assert run.backing.content == run.now


@PROPERTY
@given(SEEDS, st.sampled_from((0.0, 0.01, 0.1)))
def test_sealed_bytes_are_the_bytes_at_the_cut(seed: int, kill: float) -> None:
    run = Run(seed, limit=CHUNKS * 32, spill=0, on_full=OnFull.FAIL)  # the dead hold some for a while
    try:
        for number in range(WRITERS):
            run.writer(number, 12)
        run.scheduler.add("wide writer", lambda: run.wide_writer(WIDE_1, 6))
        with mock.patch.multiple(preimages, _BATCH=4, _SHORT=24):
            finish(run, kill)
        assert not run.shared.words[Word.FAILED]
        for chunk in range(CHUNKS):
            expected = run.at_cut[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            assert run.sealed[chunk] == expected, f"chunk {chunk}"
        owners = bytes(run.shared.owners[: run.limit])
        assert PUBLISHED not in owners, "slots leaked"
        assert run.shared.words[Word.USED] == run.limit - owners.count(FREE), "slots are miscounted"
    finally:
        run.close()


@PROPERTY
@given(SEEDS, st.sampled_from((0.0, 0.05)))
def test_what_a_session_may_hold_changes_while_it_runs(seed: int, kill: float) -> None:
    run = Run(seed, limit=CHUNKS * 16, spill=CHUNKS * 16, on_full=OnFull.FAIL)
    try:
        for number in range(WRITERS):
            run.writer(number, 12)
        run.scheduler.add("resizer", run.resizer)
        with mock.patch.multiple(preimages, _BATCH=4, _SHORT=8, _PIECE=7):
            finish(run, kill)
            assert not run.shared.words[Word.FAILED]
            assert b"".join(run.sealed[chunk] for chunk in range(CHUNKS)) == run.at_cut
            owners = bytes(run.shared.owners[: run.limit])
            assert PUBLISHED not in owners, "slots leaked"
            assert run.shared.words[Word.USED] == run.limit - owners.count(FREE), "slots are miscounted"
            assert not any(owners[run.shared.words[Word.MEMORY_TOP] :]), "a slot beyond the top is in use"
    finally:
        run.close()


@PROPERTY
@given(SEEDS)
def test_straddling_writes_and_discards_are_captured(seed: int) -> None:
    run = Run(seed, limit=CHUNKS * 16, spill=0, on_full=OnFull.FAIL)
    try:
        run.writer(0, 8)
        run.scheduler.add("wide writer", lambda: run.wide_writer(WIDE_1, 6))
        run.scheduler.add("discarder", run.discarder)
        finish(run, 0.0)
        assert b"".join(run.sealed[chunk] for chunk in range(CHUNKS)) == run.at_cut
    finally:
        run.close()


@PROPERTY
@given(SEEDS, st.sampled_from((0, 2, 8)), st.sampled_from((0, 4, 96)))
def test_a_full_buffer_spills_or_fails_the_session_but_never_lies(seed: int, limit: int, spill: int) -> None:
    run = Run(seed, limit=limit, spill=spill, on_full=OnFull.FAIL)
    try:
        for number in range(WRITERS):
            run.writer(number, 10)
        finish(run, 0.0)
        if run.shared.words[Word.FAILED]:
            handed = run.sealed or run.packs.packs_in(State.READY) or run.packs.get(Header.SWEEP_DONE)
            assert not handed, "what may lack a pre-image was handed to the sender"
        else:
            assert b"".join(run.sealed[chunk] for chunk in range(CHUNKS)) == run.at_cut
    finally:
        run.close()


@PROPERTY
@given(SEEDS)
def test_a_unit_is_captured_once(seed: int) -> None:
    run = Run(seed, limit=CHUNKS * 16, spill=0, on_full=OnFull.FAIL)
    published: list[tuple[int, int]] = []
    original = preimages.publish

    def publish(shared: Shared, chunk: int, slot: int, first: int, units: int) -> None:
        published.extend((chunk, unit) for unit in range(first, first + units))
        original(shared, chunk, slot, first, units)
        held = 0
        for preimage in preimages.chain(shared, chunk):
            held |= ((1 << preimage.units) - 1) << preimage.first
        assert preimages.captured(shared, chunk) == held

    try:
        with mock.patch("driver.volume.capture.publish", publish):
            for number in (WIDE_1, WIDE_2):
                run.scheduler.add(f"wide {number}", lambda number=number: run.wide_writer(number, 8))  # type: ignore[misc]
            finish(run, 0.0)
        assert len(published) == len(set(published))
    finally:
        run.close()


@PROPERTY
@given(SEEDS, st.sampled_from((0.0, 0.05)), st.booleans())
def test_a_session_reads_what_its_parent_lacks_and_no_write_is_forgotten(seed: int, kill: float, is_base: bool) -> None:
    """Sealed are the chunks written since the parent, with their bytes at the cut; what the parent has is what it was. And
    afterwards every chunk that is not as it was in the base is known as written, whether the session committed or not."""
    run = Run(seed, limit=CHUNKS * 16, spill=0, on_full=OnFull.FAIL, parent=True)
    try:
        for number in range(WRITERS):
            run.writer(number, 12)
        run.scheduler.add("discarder", run.discarder)
        run.scheduler.add("wide writer", lambda: run.wide_writer(WIDE_1, 6))
        finish(run, kill)
        assert not run.shared.words[Word.FAILED]
        assert set(run.sealed) == run.pending
        assert run.packs.get(Header.SWEPT_CHUNKS) == len(run.pending)
        for chunk in range(CHUNKS):
            place = slice(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)
            assert run.sealed.get(chunk, run.at_parent[place]) == run.at_cut[place], f"chunk {chunk}"
        run.end(is_base=is_base)
        written = {chunk for chunk in range(CHUNKS) if run.shared.dirty[changes.current(run.shared)][chunk]}
        assert written >= run.differs(run.at_cut if is_base else run.at_parent)
        assert not any(run.shared.dirty[changes.frozen(run.shared)][:CHUNKS])
    finally:
        run.close()
