"""What a sweeper's successor makes of what it finds."""

from __future__ import annotations

import os

import pytest

from driver.core.errors import Internal
from driver.core.sizes import CHUNK_BYTES
from driver.host.locks import RecordLocks
from driver.transfer.packbuffer import ENTRIES_MAX, Entry, Kind, PackBuffers, State, memory_bytes
from driver.volume.backing import BackingFile
from driver.volume.layout import Shared, Word, create_memory
from driver.volume.pace import Pace
from driver.volume.sweep import Sweeper


def test_a_full_directory_is_handed_over_and_not_overrun() -> None:
    """A predecessor died between the last entry that fits and the hand-over."""
    memory, raw, backing = create_memory(16 * CHUNK_BYTES, False, 1), os.memfd_create("packs"), os.memfd_create("backing")
    os.ftruncate(raw, memory_bytes(2))
    os.ftruncate(backing, 16 * CHUNK_BYTES)
    shared, packs = Shared(memory), PackBuffers(raw)
    shared.words[Word.SESSION] = 1
    shared.words[Word.SESSION_BYTES] = 16 * CHUNK_BYTES
    packs.open(0)
    for _ in range(ENTRIES_MAX):
        packs.append(0, Entry(Kind.ZERO, 0, 1))
    with pytest.raises(Internal, match="no room"):
        packs.append(0, Entry(Kind.ZERO, 0, 1))
    Sweeper(shared, packs, BackingFile(backing), backing, RecordLocks(memory), Pace(shared, 0)).recover()
    assert packs.state(0) is State.READY
    packs.close()
    shared.close()
    for fd in (memory, raw, backing):
        os.close(fd)
