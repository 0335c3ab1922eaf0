"""Which chunks were written since the snapshot that a volume's next one builds on: two maps, a byte a chunk.

Writers store 1 into the *current* map before their write begins. A cut turns the maps: what was current is *frozen*, a fact
about the cut that nobody changes while the session runs, and the other map, empty, is current. When the session has
committed, the frozen map is emptied; when it has not, it is laid over the current one. LAST_SESSION says which is which:
the store that counts it up turns them, and a helper that dies right after it has only turned them early; whoever begins
next lays the frozen map over the current one first. Bytes, not bits: a store needs no lock and undoes nobody else's.

`BASE_KNOWN` says whether the maps are complete: it is 1 if they hold every write since the base, which the volume's record
names. `save` and `load` keep them while nobody has the volume open. No file, no trust: then every chunk counts as written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from driver.core.sizes import chunks_of
from driver.host import files
from driver.volume.layout import CHUNKS_MAX, DIRTY_AT, PAGE, Shared, Word, punch

_WRITTEN: Final = b"\x01"
_WRITTEN_RUN: Final = re.compile(rb"\x01+")
_PIECE: Final = 1 << 20
_HEADER: Final = struct.Struct("<8sQ32s32s")
"""Magic, chunks, SHA-256 of what it is about (`base` below), SHA-256 of the map: each MiB that is not 0 behind its place."""
_MAGIC: Final = b"SFDIRTY1"


def current(shared: Shared) -> int:
    """The number of the map that writers store into."""
    return shared.words[Word.LAST_SESSION] & 1


def frozen(shared: Shared) -> int:
    """The number of the map that shows the last cut."""
    return current(shared) ^ 1


def next_pending(shared: Shared, chunk: int, end: int) -> int:
    """The first chunk of [chunk, end) that the running session has to read: all that its parent does not have as it was at
    the cut. `end` if there is none."""
    known = min(end, shared.words[Word.PARENT_CHUNKS])
    if chunk >= known:
        return chunk
    at = _at(frozen(shared))
    data = _seek(shared.fd, at + chunk, os.SEEK_DATA)
    if data is not None and data < at + known:
        found = shared.map.find(_WRITTEN, max(data, at + chunk), at + known)
        if found >= 0:
            return found - at
    return known


def pending_end(shared: Shared, chunk: int, end: int) -> int:
    """The end of the run of pending chunks that begins with `chunk`, at most `end`."""
    known = min(end, shared.words[Word.PARENT_CHUNKS])
    if chunk >= known:
        return end
    at = _at(frozen(shared))
    found = shared.map.find(b"\0", at + chunk, at + known)
    if found >= 0:
        return found - at
    return end


def count_pending(shared: Shared) -> int:
    """How many chunks the running session has to read."""
    total = chunks_of(shared.words[Word.SESSION_BYTES])
    known = min(total, shared.words[Word.PARENT_CHUNKS])
    return total - known + sum(piece.count(_WRITTEN) for _, piece in _pieces(shared.fd, _at(frozen(shared)), known))


def keep(shared: Shared) -> None:
    """Lay the frozen map over the current one, and empty it: what it holds was not saved by a snapshot. `LOCK_SESSION` is
    held and no session runs; writers may."""
    target = shared.dirty[current(shared)]
    for first, piece in _pieces(shared.fd, _at(frozen(shared)), CHUNKS_MAX):
        for run in _WRITTEN_RUN.finditer(piece):
            target[first + run.start() : first + run.end()] = run[0]
    _empty(shared, frozen(shared))


def forget(shared: Shared) -> None:
    """Empty the frozen map: a snapshot of that cut is the base from now on, as the volume's record says already. Called as
    `keep`."""
    shared.words[Word.BASE_KNOWN] = 1
    _empty(shared, frozen(shared))


def mark(shared: Shared, runs: Iterable[Sequence[int]]) -> None:
    """Have the next session read chunks, runs of (first, count), as if they had been written. `LOCK_SESSION` is held: a cut
    in between would have it change what is frozen."""
    for first, count in runs:
        shared.dirty[current(shared)][first : first + count] = _WRITTEN * count


def save(shared: Shared, path: Path, base: str) -> None:
    """Leave both maps in the file at `path`, durably, if they are complete. Nobody uses the volume. Raises OSError."""
    if not shared.words[Word.BASE_KNOWN]:
        return
    keep(shared)
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        chunks = chunks_of(shared.words[Word.SIZE_BYTES])
        digest = hashlib.sha256()
        os.ftruncate(fd, PAGE + chunks)
        for first, piece in _pieces(shared.fd, _at(current(shared)), chunks):
            files.pwrite_all(fd, piece, PAGE + first)
            digest.update(first.to_bytes(8, "little") + piece)
        files.pwrite_all(fd, _HEADER.pack(_MAGIC, chunks, _digest(base), digest.digest()), 0)
        os.fsync(fd)
        os.rename(beside, path)
        files.sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    finally:
        os.close(fd)


def save_none(path: Path, size_bytes: int, base: str) -> None:
    """Leave a file that says: nothing of the volume was written since `base`. Raises OSError."""
    content = _HEADER.pack(_MAGIC, chunks_of(size_bytes), _digest(base), hashlib.sha256().digest())
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        files.pwrite_all(fd, content, 0)
        os.ftruncate(fd, PAGE + chunks_of(size_bytes))
        os.fsync(fd)
    finally:
        os.close(fd)
    files.sync_folder(path.parent)


def move(path: Path, base: str, to: str) -> None:
    """What `save` left about `base` is about `to` from now on; what is about something else stays so. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) == _HEADER.size:
            magic, chunks, of, digest = _HEADER.unpack(header)
            if of == _digest(base):
                files.pwrite_all(fd, _HEADER.pack(magic, chunks, _digest(to), digest), 0)
                os.fsync(fd)
    finally:
        os.close(fd)


def load(shared: Shared, path: Path, base: str) -> None:
    """Take over what `save` left, if it was about `base` and is whole. The memory is new. After an OSError nothing is
    trusted.

    The caller removes the file before anybody may write.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            return
        magic, chunks, of, expected = _HEADER.unpack(header)
        if magic != _MAGIC or of != _digest(base) or chunks > CHUNKS_MAX or os.fstat(fd).st_size != PAGE + chunks:
            return
        target = shared.dirty[current(shared)]
        digest = hashlib.sha256()
        for first, piece in _pieces(fd, PAGE, chunks):
            for at in range(0, len(piece), PAGE):
                page = piece[at : at + PAGE]
                if page.count(0) != len(page):  # what is written gets memory
                    target[first + at : first + at + len(page)] = page
            digest.update(first.to_bytes(8, "little") + piece)
        shared.words[Word.BASE_KNOWN] = int(digest.digest() == expected)
    finally:
        os.close(fd)


def _digest(base: str) -> bytes:
    return hashlib.sha256(base.encode()).digest()


def _at(which: int) -> int:
    return DIRTY_AT + which * CHUNKS_MAX


def _empty(shared: Shared, which: int) -> None:
    punch(shared.fd, _at(which), CHUNKS_MAX)


def _pieces(fd: int, at: int, length: int) -> Iterator[tuple[int, bytes]]:
    """The pieces of a map that are not all 0: each MiB from `at` on, and where it begins. Read, not mapped: that would give
    pages to what has none."""
    start = 0
    while start < length:
        data = _seek(fd, at + start, os.SEEK_DATA)
        if data is None or data >= at + length:
            return
        first = (data - at) // _PIECE * _PIECE
        start = min(first + _PIECE, length)
        piece = os.pread(fd, start - first, at + first)
        if piece.count(0) != len(piece):
            yield first, piece


def _seek(fd: int, offset: int, whence: int) -> int | None:
    """None: nothing there (ENXIO)."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
