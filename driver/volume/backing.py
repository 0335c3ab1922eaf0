"""The backing file of a volume: the one place of the block path that reads and writes it, and so the tests' seam."""

from __future__ import annotations

import concurrent.futures
import errno
import os
from collections.abc import Sequence
from typing import Final, Protocol

from driver.fuse.protocol import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)
from driver.host.kernel import fallocate

READS_MAX: Final = 4
"""So many of `read_all` are under way at once."""


class Backing(Protocol):
    """What the block path needs of the file. Offsets and lengths are multiples of the logical block size."""

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill the page-aligned `buffer`. Raises OSError; EIO if the file ends before."""

    def read_all(self, reads: Sequence[tuple[memoryview, int]]) -> None:
        """Several reads, (buffer, offset), at once. Raises as `read`, when none of them is under way any more."""

    def write(self, buffer: memoryview, offset: int) -> None:
        """Write all of the page-aligned `buffer`. Raises OSError; part of it may have been written."""

    def flush(self) -> None:
        """Return when every write that returned before is on stable storage. Raises OSError."""

    def zero(self, offset: int, length: int, *, punch: bool) -> None:
        """Make the range read as zeros; with `punch` its blocks may be given back. Raises OSError."""

    def data_from(self, offset: int, end: int) -> int:
        """The first offset at or after `offset` that may hold data, or `end`. Raises OSError; EIO as `read`."""


class BackingFile:
    """A regular file opened O_RDWR | O_DIRECT. Any thread; the descriptor is the caller's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._readers: concurrent.futures.Executor | None = None

    def read(self, buffer: memoryview, offset: int) -> None:
        count = os.preadv(self.fd, [buffer], offset)
        if count != len(buffer):
            self._read_rest(buffer, offset, count)

    def read_all(self, reads: Sequence[tuple[memoryview, int]]) -> None:
        if len(reads) == 1:
            self.read(*reads[0])
            return
        if self._readers is None:
            self._readers = concurrent.futures.ThreadPoolExecutor(READS_MAX, thread_name_prefix="read")
        under_way = [self._readers.submit(self.read, *each) for each in reads]
        concurrent.futures.wait(under_way)
        for future in under_way:
            future.result()

    def _read_rest(self, buffer: memoryview, offset: int, count: int) -> None:
        while count < len(buffer):
            more = os.preadv(self.fd, [buffer[count:]], offset + count)
            if not more:
                raise OSError(errno.EIO, "the backing file is shorter than its volume")
            count += more

    def write(self, buffer: memoryview, offset: int) -> None:
        count = os.pwrite(self.fd, buffer, offset)
        while count != len(buffer):
            count += os.pwrite(self.fd, buffer[count:], offset + count)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def zero(self, offset: int, length: int, *, punch: bool) -> None:
        mode = FALLOC_FL_PUNCH_HOLE if punch else FALLOC_FL_ZERO_RANGE
        fallocate(self.fd, mode | FALLOC_FL_KEEP_SIZE, offset, length)

    def data_from(self, offset: int, end: int) -> int:
        try:
            return min(os.lseek(self.fd, offset, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if os.fstat(self.fd).st_size < end:
            raise OSError(errno.EIO, "the backing file is shorter than its volume")
        return end
