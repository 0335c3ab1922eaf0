"""Copy a session's sealed chunks into another volume's backing file, in a sender's place. Any thread.

The target is new and reads as zeros, so zero chunks cost nothing. A buffer is FREE only when its chunks are written: a copy
that dies is done again from what is READY, and writes the same bytes to the same places.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from driver.core.sizes import CHUNK_BYTES
from driver.host import files
from driver.host.diskerrors import disk_error
from driver.transfer.packbuffer import Header, Kind, PackBuffers, State

_POLL_SECONDS: Final = 0.003


def copy(packs: PackBuffers, backing: int) -> None:
    """Until the sweep is done and every chunk is durable in `backing` (O_DIRECT). Raises OutOfSpace, DeviceError."""
    try:
        while True:
            swept = packs.get(Header.SWEEP_DONE)
            ready = packs.packs_in(State.READY)
            for pack in ready:
                _write(packs, pack, backing)
                packs.set_state(pack, State.FREE)
            if swept and not ready and not packs.packs_in(State.FILLING):
                os.fsync(backing)
                return
            if not ready:
                time.sleep(_POLL_SECONDS)
    except OSError as error:
        raise disk_error(error, "writing the new volume") from error


def _write(packs: PackBuffers, pack: int, backing: int) -> None:
    stored = 0
    for first, place, count in _runs(packs, pack):
        data = packs.data(pack, place, count)
        files.pwrite_all(backing, data, first * CHUNK_BYTES)
        stored += count
    zero = sum(entry.count for entry in packs.entries(pack) if entry.kind is Kind.ZERO)
    packs.set(Header.STORED_CHUNKS, packs.get(Header.STORED_CHUNKS) + stored)
    packs.set(Header.STORED_BYTES, packs.get(Header.STORED_BYTES) + stored * CHUNK_BYTES)
    packs.set(Header.ZERO_CHUNKS, packs.get(Header.ZERO_CHUNKS) + zero)


def _runs(packs: PackBuffers, pack: int) -> Iterator[tuple[int, int, int]]:
    """(first chunk, first place, count) of neighbours in a buffer, in the volume and in the buffer alike."""
    run: tuple[int, int, int] | None = None
    place = 0
    for entry in packs.entries(pack):
        if entry.kind is not Kind.DATA:
            continue
        if run is not None and entry.chunk == run[0] + run[2]:
            run = (run[0], run[1], run[2] + 1)
        else:
            if run is not None:
                yield run
            run = (entry.chunk, place, 1)
        place += 1
    if run is not None:
        yield run
