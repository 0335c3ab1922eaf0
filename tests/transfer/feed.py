"""Fills pack buffers from the bytes of a volume, as the sweeper would."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_PACK
from driver.transfer.packbuffer import ENTRIES_MAX, Entry, Header, Kind, PackBuffers, State, memory_bytes

_ZERO = bytes(CHUNK_BYTES)


def make_packs(count: int) -> int:
    """The descriptor of new memory for `count` buffers."""
    fd = os.memfd_create("packs")
    os.ftruncate(fd, memory_bytes(count))
    return fd


class Feed:
    """Feeds one volume; `order` is the order of its chunks, `stop` ends it early.

    Until `may_end` is set, as it is from the start, the last chunk is kept back: so long no sender comes to its end.
    """

    def __init__(self, fd: int, volume: bytes, order: Iterable[int] | None = None) -> None:
        self.packs = PackBuffers(fd)
        self.volume = volume
        self.order = list(order) if order is not None else list(range(len(volume) // CHUNK_BYTES))
        self.stop = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self._pack: int | None = None
        self._place = 0
        self._fed = 0

    def start(self) -> threading.Thread:
        """Run in a thread of its own: buffers come back only while a sender runs."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        run: list[int] = []
        for place, chunk in enumerate(self.order, 1):
            if place == len(self.order):
                self.may_end.wait()
            if self.stop.is_set():
                return
            data = self.volume[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            if data == _ZERO:
                if run and run[-1] + 1 != chunk:
                    self.zero(run[0], len(run))
                    run = []
                run.append(chunk)
                continue
            if run:
                self.zero(run[0], len(run))
                run = []
            self.data(chunk, data)
        if run:
            self.zero(run[0], len(run))
        self.finish()

    def data(self, chunk: int, data: bytes) -> None:
        pack = self._room()
        self.packs.data(pack, self._place)[:] = data
        self.packs.append(pack, Entry(Kind.DATA, chunk, 1))
        self._place += 1
        self._fed += 1
        if self._place == CHUNKS_PER_PACK:
            self.hand_over()

    def zero(self, first: int, count: int) -> None:
        self.packs.append(self._room(), Entry(Kind.ZERO, first, count))
        self._fed += count

    def finish(self) -> None:
        self.hand_over()
        self.packs.set(Header.SWEPT_CHUNKS, self._fed)
        self.packs.set(Header.SWEEP_DONE, 1)

    def hand_over(self) -> None:
        if self._pack is not None:
            self.packs.set_state(self._pack, State.READY)
            self._pack = None

    def _room(self) -> int:
        if self._pack is not None and self.packs.entry_count(self._pack) >= ENTRIES_MAX - 2:
            self.hand_over()
        while self._pack is None:
            free = self.packs.packs_in(State.FREE)
            if free:
                self._pack, self._place = free[0], 0
                self.packs.open(free[0])
            elif self.stop.is_set():
                raise SystemExit
            else:
                time.sleep(0.001)
        return self._pack
