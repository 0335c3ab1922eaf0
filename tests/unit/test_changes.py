"""The dirty maps: turned by a cut, kept or forgotten at a session's end, saved and loaded, trusted only if whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.ids import new_id
from driver.core.sizes import CHUNK_BYTES, MIB, TIB, chunks_of
from driver.volume import changes, session
from driver.volume.layout import CHUNKS_MAX, OnFull, Shared, Word
from tests.memory import served_memory

CHUNKS = 64
BASE = "main:11111111-1111-4111-8111-111111111111 2026-01-02T03:04:05+00:00"


@pytest.fixture
def shared() -> Iterator[Shared]:
    fd = served_memory(CHUNKS * CHUNK_BYTES, True, 1)
    made = Shared(fd)
    yield made
    made.close()
    os.close(fd)


def write(shared: Shared, *chunks: int) -> None:
    for chunk in chunks:
        shared.dirty[changes.current(shared)][chunk] = 1


def written(shared: Shared) -> list[int]:
    view = shared.dirty[changes.current(shared)]
    return [chunk for chunk in range(CHUNKS) if view[chunk]]


def cut(shared: Shared, parent_chunks: int = CHUNKS) -> str:
    name = new_id()
    session.begin([session.Part(shared, name, session.Limits(64, 0, OnFull.FAIL, parent_chunks))], 1.0)
    return name


def end(shared: Shared, name: str, *, is_base: bool) -> None:
    session.end(session.Part(shared, name), 1.0, lambda: None, is_base=is_base)


def pending(shared: Shared, end: int = CHUNKS) -> list[int]:
    found = []
    chunk = changes.next_pending(shared, 0, end)
    while chunk < end:
        found.append(chunk)
        chunk = changes.next_pending(shared, chunk + 1, end)
    return found


def test_a_session_reads_what_was_written_before_its_cut(shared: Shared) -> None:
    shared.words[Word.BASE_KNOWN] = 1
    write(shared, 3, 4, 40)
    cut(shared)
    write(shared, 5, 40, 60)
    assert pending(shared) == [3, 4, 40]
    assert shared.words[Word.PENDING_CHUNKS] == 3
    assert changes.pending_end(shared, 3, CHUNKS) == 5
    assert [chunk for chunk in range(CHUNKS) if not shared.is_sealed(chunk)] == [3, 4, 40]
    assert written(shared) == [5, 40, 60]


def test_what_the_parent_is_too_small_for_is_read(shared: Shared) -> None:
    shared.words[Word.BASE_KNOWN] = 1
    write(shared, 3)
    cut(shared, parent_chunks=60)
    assert pending(shared) == [3, 60, 61, 62, 63]
    assert changes.pending_end(shared, 60, CHUNKS) == CHUNKS
    assert shared.words[Word.PENDING_CHUNKS] == 5


def test_maps_that_are_not_complete_are_not_used(shared: Shared) -> None:
    write(shared, 3)
    cut(shared)
    assert pending(shared) == list(range(CHUNKS))


def test_after_a_commit_only_what_was_written_since_the_cut_counts(shared: Shared) -> None:
    write(shared, 3)
    name = cut(shared, 0)
    write(shared, 9)
    end(shared, name, is_base=True)
    assert written(shared) == [9]
    cut(shared)
    assert pending(shared) == [9]


def test_what_the_store_wants_again_is_read_by_the_next_session(shared: Shared) -> None:
    name = cut(shared, 0)
    write(shared, 9)
    session.end(session.Part(shared, name), 1.0, lambda: None, is_base=True, again=[(3, 2), (40, 1)])
    cut(shared)
    assert pending(shared) == [3, 4, 9, 40]


def test_what_a_failed_session_did_not_save_is_still_to_be_saved(shared: Shared) -> None:
    shared.words[Word.BASE_KNOWN] = 1
    write(shared, 3, 4)
    name = cut(shared)
    write(shared, 9)
    end(shared, name, is_base=False)
    assert written(shared) == [3, 4, 9]
    cut(shared)
    assert pending(shared) == [3, 4, 9]


def test_a_helper_that_died_right_after_it_turned_the_maps_loses_nothing(shared: Shared) -> None:
    shared.words[Word.BASE_KNOWN] = 1
    write(shared, 3, 4)
    shared.words[Word.LAST_SESSION] += 1  # and no SESSION
    write(shared, 9)
    cut(shared)
    assert pending(shared) == [3, 4, 9]


def test_they_outlive_a_detach(shared: Shared, tmp_path: Path) -> None:
    path = tmp_path / "changes"
    shared.words[Word.BASE_KNOWN] = 1
    write(shared, 0, 33, 63)
    shared.words[Word.LAST_SESSION] += 1
    write(shared, 7)
    changes.save(shared, path, BASE)
    other = Shared(served_memory(CHUNKS * CHUNK_BYTES, True, 1))
    changes.load(other, path, BASE)
    assert other.words[Word.BASE_KNOWN]
    assert written(other) == [0, 7, 33, 63]


def test_a_restored_volume_has_no_changes(shared: Shared, tmp_path: Path) -> None:
    changes.save_none(tmp_path / "changes", CHUNKS * CHUNK_BYTES, BASE)
    changes.load(shared, tmp_path / "changes", BASE)
    assert shared.words[Word.BASE_KNOWN] and not written(shared)


@pytest.mark.parametrize("ailment", [
    "another base", "cut short", "longer", "altered", "gone", "never complete", "empty", "another format", "too many chunks",
])  # fmt: skip
def test_what_is_not_whole_is_not_trusted(shared: Shared, tmp_path: Path, ailment: str) -> None:
    path = tmp_path / "changes"
    shared.words[Word.BASE_KNOWN] = ailment != "never complete"
    write(shared, 5)
    changes.save(shared, path, BASE)
    if ailment == "cut short":
        os.truncate(path, 4096 + CHUNKS - 1)
    elif ailment == "altered":
        with path.open("r+b") as file:
            file.seek(4096 + 5)
            file.write(b"\0")
    elif ailment == "longer":
        os.truncate(path, 4096 + CHUNKS + 1)
    elif ailment == "empty":
        os.truncate(path, 0)
    elif ailment == "another format":
        with path.open("r+b") as file:
            file.write(b"?")
    elif ailment == "too many chunks":
        piece = path.read_bytes()[4096:].ljust(MIB, b"\0")
        with path.open("r+b") as file:
            file.seek(8)
            file.write((CHUNKS_MAX + 1).to_bytes(8, "little"))
            file.seek(48)
            file.write(hashlib.sha256(bytes(8) + piece).digest())
            file.truncate(4096 + CHUNKS_MAX + 1)
    elif ailment == "gone":
        path.unlink()
    other = Shared(served_memory(CHUNKS * CHUNK_BYTES, True, 1))
    changes.load(other, path, BASE if ailment != "another base" else BASE.replace("main", "other"))
    assert not other.words[Word.BASE_KNOWN]


def test_the_largest_volume_takes_pages_for_what_was_written_only(tmp_path: Path) -> None:
    size = 16 * TIB - CHUNK_BYTES
    fd = served_memory(size, True, 1)
    shared = Shared(fd)
    shared.words[Word.BASE_KNOWN] = 1
    last = chunks_of(size) - 1
    write(shared, 1, last)
    name = cut(shared, last + 1)
    assert changes.next_pending(shared, 2, last + 1) == last
    assert shared.words[Word.PENDING_CHUNKS] == 2
    end(shared, name, is_base=False)
    changes.save(shared, tmp_path / "changes", BASE)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    assert (tmp_path / "changes").stat().st_blocks * 512 < 4 << 20
    other = Shared(served_memory(size, True, 1))
    changes.load(other, tmp_path / "changes", BASE)
    cut(other, last + 1)
    assert other.words[Word.PENDING_CHUNKS] == 2
    assert os.fstat(other.fd).st_blocks * 512 < 1 << 20
