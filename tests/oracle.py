"""A writer whose every write is logged, and the question whether an image is one of the states that it went through."""

from __future__ import annotations

import mmap
import os
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from driver.core.sizes import MIB
from driver.fuse.protocol import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from driver.host.kernel import fallocate
from tests.waiting import wait_until

BLOCK: Final = 4096
_MAX: Final = 256 * 1024


@dataclass(frozen=True)
class Write:
    offset: int
    data: bytes


class LoggedWriter:
    """Writes random ranges of a block device one after another (O_DIRECT), in a thread, and discards some."""

    def __init__(self, device: str, size_bytes: int, seed: int, block: int = BLOCK, discards: bool = True) -> None:
        self.device = device
        self.size_bytes = size_bytes
        self.block = block
        self.discards = discards
        self.random = random.Random(seed)
        self.log: list[Write] = []
        self.acknowledged = 0
        self.begun = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LoggedWriter:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(150)
        assert not self._thread.is_alive(), "a write hangs"
        if self.error is not None and exception[0] is None:
            raise self.error

    def go_on(self) -> None:
        """Until a write that begins from now on is acknowledged. Raises what ended the writer."""
        begun = self.begun
        wait_until(lambda: self.acknowledged > begun or self.error)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            fd = os.open(self.device, os.O_RDWR | os.O_DIRECT)
            try:
                buffer = mmap.mmap(-1, _MAX)
                while not self._stop.is_set():
                    self._one(fd, memoryview(buffer))
            finally:
                os.close(fd)
        except BaseException as error:
            self.error = error

    def _one(self, fd: int, buffer: memoryview) -> None:
        length = self.random.choice((1, 1, 1, 1, 2, 3, 17, 40)) * self.block
        offset = self.random.randrange((self.size_bytes - length) // self.block + 1) * self.block
        kind = self.random.random()
        zero = kind < 0.1
        data = bytes(length) if zero else self.random.randbytes(16) * (length // 16)
        self.log.append(Write(offset, data))
        self.begun += 1
        if self.discards and kind < 0.05:
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        else:
            buffer[:length] = data
            assert os.pwrite(fd, buffer[:length], offset) == length
        self.acknowledged += 1


def fill(path: str | Path, length_bytes: int, at_bytes: int = 0) -> None:
    """Random bytes to a block device, or a file, from `at_bytes` on (O_DIRECT)."""
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer, memoryview(buffer) as view:
            for offset in range(at_bytes, at_bytes + length_bytes, MIB):
                piece = view[: min(MIB, at_bytes + length_bytes - offset)]
                with piece:
                    piece[:] = os.urandom(len(piece))
                    assert os.pwrite(fd, piece, offset) == len(piece)
    finally:
        os.close(fd)


def read_device(device: str, size_bytes: int) -> bytearray:
    """All bytes of a block device."""
    content = bytearray(size_bytes)
    with open(device, "rb") as file:
        assert file.readinto(content) == size_bytes
    return content


def state_in(
    image: bytes | bytearray, start: bytes, log: list[Write], first: int, last: int, block: int = BLOCK
) -> int | None:
    """The k in [first, last] for which `image` is `start` after the first k writes; None if there is none."""
    state = bytearray(start)
    for write in log[:first]:
        state[write.offset : write.offset + len(write.data)] = write.data
    differing = {
        at for at in range(0, len(image), block) if image[at : at + block] != state[at : at + block]
    }  # fmt: skip
    for k in range(first, last + 1):
        if not differing:
            return k
        if k < len(log):
            write = log[k]
            state[write.offset : write.offset + len(write.data)] = write.data
            for at in range(write.offset, write.offset + len(write.data), block):
                if image[at : at + block] != state[at : at + block]:
                    differing.add(at)
                else:
                    differing.discard(at)
    return None
