"""Read a whole snapshot, every chunk checked against its digest: into a backing file, or just to verify it.

Region by region; the ranges of packs are fetched, checked and written by a few threads. A process of its own.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from driver.core.errors import DeviceError, InvalidArgument, NotFound, OutOfSpace, StillframeError
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, MIB, chunks_of
from driver.host import files
from driver.store.port import ObjectStore
from driver.transfer import catalog, plan, region
from driver.transfer.chunks import Decompressor
from driver.transfer.plan import Range
from driver.transfer.records import Manifest, RegionEntry, corrupt, missing

WORKERS: Final = 4
_AHEAD: Final = 2 * WORKERS
_WINDOW_BYTES: Final = 2 * MIB


class Target(Protocol):
    """Where chunks go that are not zero. `write` may be called by several threads, each with a window of its own."""

    def write(self, data: memoryview, offset: int) -> None: ...

    def sync(self) -> None: ...


class BackingFile:
    """The volume's backing file behind `fd`, which may be opened with O_DIRECT; it must read as zeros."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        if os.fstat(fd).st_size < size_bytes:
            raise InvalidArgument(f"the volume's file is smaller than the snapshot's {size_bytes} bytes")

    def write(self, data: memoryview, offset: int) -> None:
        """`data` is page-aligned. Raises OutOfSpace, DeviceError."""
        try:
            files.pwrite_all(self._fd, data, offset)
        except OSError as error:
            raise _file_error(error) from error

    def sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _file_error(error) from error


class Nowhere:
    """For `verify`: nothing is kept."""

    def write(self, data: memoryview, offset: int) -> None:
        pass

    def sync(self) -> None:
        pass


class Reader:
    """Reads one snapshot into a target. `progress` is told of bytes of the volume that are done; from any thread."""

    def __init__(self, store: ObjectStore, manifest: Manifest, target: Target, progress: Callable[[int], None]) -> None:
        self._store = store
        self._manifest = manifest
        self._target = target
        self._progress = progress
        self._local = threading.local()
        self.chunks = 0
        self.bytes_read = 0
        self._counting = threading.Lock()  # guards the two above

    def run(self) -> None:
        """Raises DataCorrupt (naming the object), NotFound if the snapshot was deleted and is being collected meanwhile, and
        what the store or the target raises."""
        pool = concurrent.futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="read")
        try:
            running: set[concurrent.futures.Future[None]] = set()
            for wanted in self._ranges():
                running.add(pool.submit(self._fetch, wanted))
                if len(running) >= _AHEAD:
                    running = self._wait(running, concurrent.futures.FIRST_COMPLETED)
            self._wait(running, concurrent.futures.ALL_COMPLETED)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self._target.sync()

    @staticmethod
    def _wait(running: set[concurrent.futures.Future[None]], until: str) -> set[concurrent.futures.Future[None]]:
        done, left = concurrent.futures.wait(running, return_when=until)
        for future in done:
            future.result()
        return left

    def _ranges(self) -> Iterator[Range]:
        total = chunks_of(self._manifest.size_bytes)
        for entry in self._manifest.regions:
            first = entry.number * CHUNKS_PER_REGION
            count = min(CHUNKS_PER_REGION, total - first)
            if entry.is_zero:
                self._count(count, 0)
                continue
            index = self._index(entry, count)
            for run in plan.zero_runs(index):
                self._count(run.count, 0)
            yield from plan.ranges(index)

    def _index(self, entry: RegionEntry, count: int) -> region.RegionIndex:
        key = entry.key or ""
        data = self._store.get(key, region.BYTES_MAX)
        if data is None:
            raise self._missing(key)
        if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise corrupt(key, "it is not what the manifest says")
        index = region.decode(data, key)
        if (index.number, len(index.chunks), str(index.lineage)) != (entry.number, count, self._manifest.lineage):
            raise corrupt(key, "it describes another region")
        self._count(0, len(data))
        return index

    def _missing(self, key: str) -> StillframeError:
        """Why an object is not there."""
        try:
            catalog.committed(self._store, self._manifest.snapshot.id)
        except NotFound as error:
            return error
        return missing(key)

    def _fetch(self, wanted: Range) -> None:
        part = self._store.get_range(wanted.key, wanted.offset, wanted.length)
        if part is None:
            raise self._missing(wanted.key)
        if part.total_bytes != wanted.total_bytes or len(part.data) != wanted.length:
            raise corrupt(wanted.key, f"it has {part.total_bytes} bytes, not {wanted.total_bytes}")
        stored = memoryview(part.data)
        window = self._window()
        decompressor: Decompressor = self._local.decompressor
        for position, chunk in wanted.chunks:
            start = chunk.offset - wanted.offset
            data = decompressor.restore(chunk, stored[start : start + chunk.length], wanted.key)
            window.add(position, data)
        window.flush()
        self._count(len(wanted.chunks), wanted.length)

    def _window(self) -> _Window:
        if not hasattr(self._local, "window"):
            self._local.window = _Window(self._target)
            self._local.decompressor = Decompressor()
        window: _Window = self._local.window
        return window

    def _count(self, chunks: int, read: int) -> None:
        with self._counting:
            self.chunks += chunks
            self.bytes_read += read
        self._progress(chunks * CHUNK_BYTES)


class _Window:
    """Page-aligned memory in which neighbouring chunks are gathered for one write. One thread."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._memory = memoryview(mmap.mmap(-1, _WINDOW_BYTES))
        self._first = 0
        self._used = 0

    def add(self, position: int, data: memoryview) -> None:
        if self._used == _WINDOW_BYTES or self._first * CHUNK_BYTES + self._used != position * CHUNK_BYTES:
            self.flush()
        if not self._used:
            self._first = position
        self._memory[self._used : self._used + CHUNK_BYTES] = data
        self._used += CHUNK_BYTES

    def flush(self) -> None:
        if self._used:
            self._target.write(self._memory[: self._used], self._first * CHUNK_BYTES)
            self._used = 0


def _file_error(error: OSError) -> StillframeError:
    message = f"writing the restored volume: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfSpace(message, "make room on the file system of the state folder")
    return DeviceError(message, "look at the disk of the state folder")
