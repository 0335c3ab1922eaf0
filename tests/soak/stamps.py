"""Writers that stamp every block they write, and the question whether an image shows one instant of what they did.

A block is 4 KiB: its number and the number of the write, over and over. Each thread owns a run of blocks, so the writes to
one block follow one another; those to different blocks overlap. An instant C is shown when every write that was
acknowledged before C is there and none that began after C: with `begun` and `acknowledged` counted on one clock of events,

    newest `begun` of what is there  <  oldest `acknowledged` of what is missing
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import struct
import threading
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 4096
_STAMP: Final = struct.Struct("<QQ")
_RUN_MAX: Final = 16
NEVER: Final = 1 << 62


@dataclass(slots=True)
class Write:
    """A write to one block; `acknowledged` is NEVER while it is in hand."""

    number: int
    begun: int
    acknowledged: int = NEVER


class Mismatch(Exception):
    """An image shows what never was."""


class Stamps:
    """The writers of the first `size_bytes` of a device, and their history."""

    def __init__(self, device: str, size_bytes: int, seed: int, threads: int = 4) -> None:
        self.device = device
        self.blocks = size_bytes // BLOCK
        self.verified = 0
        self.errors: list[str] = []
        self._events = itertools.count(1)
        self._numbers = itertools.count(1)
        self._history: list[list[Write]] = [[Write(0, 0, 0)] for _ in range(self.blocks)]
        self._changing = threading.Lock()  # guards _history
        self._stop = threading.Event()
        share = self.blocks // threads
        self._threads = [
            threading.Thread(target=self._run, args=[random.Random(seed * 100 + n), n * share, share], daemon=True)
            for n in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Raises Mismatch if a write was refused, or hangs."""
        self._stop.set()
        for thread in self._threads:
            thread.join(150)
            if thread.is_alive():
                raise Mismatch(f"{self.device}: a write hangs")

    def now(self) -> int:
        """The clock of events."""
        return next(self._events)

    def written(self) -> int:
        """Blocks written so far."""
        return next(self._numbers)

    def _run(self, dice: random.Random, first: int, count: int) -> None:
        try:
            fd = os.open(self.device, os.O_RDWR | os.O_DIRECT)
            buffer = memoryview(mmap.mmap(-1, _RUN_MAX * BLOCK))
            while not self._stop.wait(0.002):
                length = dice.choice((1, 1, 1, 2, 5, _RUN_MAX))
                self._one(fd, buffer, first + dice.randrange(count - length + 1), length)
            os.close(fd)
        except OSError as error:
            self.errors.append(f"{self.device}: {error}")

    def _one(self, fd: int, buffer: memoryview, first: int, length: int) -> None:
        writes = [Write(next(self._numbers), 0) for _ in range(length)]
        for index, write in enumerate(writes):
            stamp = _STAMP.pack(first + index, write.number)
            buffer[index * BLOCK : (index + 1) * BLOCK] = stamp * (BLOCK // _STAMP.size)
        begun = next(self._events)
        with self._changing:
            for index, write in enumerate(writes):
                write.begun = begun
                self._history[first + index].append(write)
        done = os.pwrite(fd, buffer[: length * BLOCK], first * BLOCK)
        acknowledged = next(self._events)
        if done != length * BLOCK:
            raise OSError(f"a write of {length * BLOCK} bytes was short: {done}")
        for write in writes:
            write.acknowledged = acknowledged

    def forget(self, before: int) -> None:
        """Drop the history that no image of an instant after `before` can show."""
        with self._changing:
            for writes in self._history:
                keep = max((i for i, write in enumerate(writes) if write.acknowledged < before), default=0)
                del writes[:keep]

    def check(self, image: memoryview, before: int, after: int) -> None:
        """Whether `image` shows one instant between the events `before` and `after`. Raises Mismatch."""
        newest_there, oldest_missing = before, after
        for block in range(self.blocks):
            data = image[block * BLOCK : (block + 1) * BLOCK]
            number = self._number(block, data)
            with self._changing:
                writes = list(self._history[block])
            at = next((i for i, write in enumerate(writes) if write.number == number), None)
            if at is None:
                raise Mismatch(f"block {block} shows write {number}, which is older than any that may be there")
            newest_there = max(newest_there, writes[at].begun)
            if at + 1 < len(writes):
                oldest_missing = min(oldest_missing, writes[at + 1].acknowledged)
            self.verified += 1
        if newest_there > oldest_missing:
            raise Mismatch(
                f"no instant has it all: a write begun at {newest_there} is there, one acknowledged at {oldest_missing} "
                f"is not (asked between {before} and {after})"
            )

    @staticmethod
    def _number(block: int, data: memoryview) -> int:
        stamp = bytes(data[: _STAMP.size])
        if stamp == bytes(_STAMP.size) and not any(data):
            return 0
        where, number = _STAMP.unpack(stamp)
        if where != block or bytes(data) != stamp * (BLOCK // _STAMP.size):
            raise Mismatch(f"block {block} holds {stamp.hex()}, torn or of another place")
        return int(number)
