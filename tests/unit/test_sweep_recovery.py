"""What a sweeper's successor makes of what it finds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from driver.core.errors import Internal
from driver.core.sizes import CHUNK_BYTES
from driver.host.locks import RecordLocks
from driver.transfer.packbuffer import ENTRIES_MAX, Entry, Header, Kind, PackBuffers, State, memory_bytes
from driver.volume.backing import BackingFile
from driver.volume.capture import Capture
from driver.volume.layout import SEALED, Failure, Shared, Word
from driver.volume.pace import Pace
from driver.volume.preimages import Slots
from driver.volume.sweep import SessionFailed, Sweeper
from tests.memory import served_memory


@dataclass
class Bed:
    """A session's memory, pack buffers and a file that is backing and spill file; `sweeper` makes a new sweeper."""

    shared: Shared
    packs: PackBuffers
    file: int

    def sweeper(self) -> Sweeper:
        locks = RecordLocks(self.shared.fd)
        return Sweeper(self.shared, self.packs, BackingFile(self.file), self.file, locks, Pace(self.shared, 0))


@pytest.fixture
def bed() -> Iterator[Bed]:
    memory, raw, file = served_memory(16 * CHUNK_BYTES, False, 1), os.memfd_create("packs"), os.memfd_create("backing")
    os.ftruncate(raw, memory_bytes(2))
    os.ftruncate(file, 16 * CHUNK_BYTES)
    made = Bed(Shared(memory), PackBuffers(raw), file)
    made.shared.words[Word.SESSION] = 1
    made.shared.words[Word.SESSION_BYTES] = 16 * CHUNK_BYTES
    yield made
    made.packs.close()
    made.shared.close()
    for fd in (memory, raw, file):
        os.close(fd)


def test_a_full_directory_is_handed_over_and_not_overrun(bed: Bed) -> None:
    """A predecessor died between the last entry that fits and the hand-over."""
    bed.packs.open(0)
    for _ in range(ENTRIES_MAX):
        bed.packs.append(0, Entry(Kind.ZERO, 0, 1))
    with pytest.raises(Internal, match="no room"):
        bed.packs.append(0, Entry(Kind.ZERO, 0, 1))
    bed.sweeper().recover()
    assert bed.packs.state(0) is State.READY


def test_a_write_that_the_disk_refused_is_told_to_the_successor_of_who_was_killed_as_it_learned_of_it(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells each open file description once of what it could not write back (lib/errseq.c); the descriptor of the
    spill file that all sweepers get is of one description."""
    told: set[int] = set()
    killed = True

    class Killed(BaseException):
        pass

    def fdatasync(fd: int) -> None:
        is_shared = fd == bed.file
        if is_shared and fd not in told:
            told.add(fd)
            raise OSError(errno.EIO, "Input/output error")
        if killed and not is_shared:
            raise Killed

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    bed.shared.words[Word.SPILL_READY] = 1
    with pytest.raises(Killed):
        bed.sweeper().finish()
    assert bed.packs.get(Header.SWEEP_DONE) == 0
    killed = False
    with pytest.raises(SessionFailed):
        bed.sweeper().finish()
    assert bed.shared.words[Word.FAILED] == Failure.SPILL_ERROR
    assert bed.packs.get(Header.SWEEP_DONE) == 0


def test_a_full_buffer_is_no_failure_for_a_chunk_that_was_sealed_meanwhile(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot_words = bed.shared.slot_words(0)
    capture = Capture(bed.shared, 0, slot_words, BackingFile(bed.file), RecordLocks(bed.shared.fd), None)

    def none_left(self: Slots, count: int) -> None:
        bed.shared.chunks[3] = SEALED

    monkeypatch.setattr(Slots, "reserve", none_left)
    capture.before_write(3 * CHUNK_BYTES, CHUNK_BYTES)
    assert bed.shared.words[Word.FAILED] == Failure.NONE
    monkeypatch.setattr(Slots, "reserve", lambda self, count: None)
    capture.before_write(4 * CHUNK_BYTES, CHUNK_BYTES)
    assert bed.shared.words[Word.FAILED] == Failure.BUFFER_FULL
