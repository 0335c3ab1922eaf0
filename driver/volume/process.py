"""Main functions of the processes that the keeper forks for a volume: they own nothing that outlives them.

Each runs in a fresh fork of the keeper with the volume's descriptors by role (`Roles`) and a JSON argument; it returns
when its work is done for good. An exception or a signal means: start a successor.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Mapping
from typing import Any

from driver.host import kernel
from driver.host.locks import RecordLocks
from driver.transfer.packbuffer import PackBuffers
from driver.volume.backing import BackingFile
from driver.volume.capture import Parked
from driver.volume.layout import HEADER_WORD, LOCK_SLOTS, SLOT_BYTES, SLOTS_AT, Shared, SlotWord, Word
from driver.volume.pace import Pace
from driver.volume.parking import Parking
from driver.volume.preimages import recover_reserved
from driver.volume.requests import Disconnected, Worker
from driver.volume.sweep import SessionFailed, Sweeper

Roles = Mapping[str, int]
"""Descriptors of one volume: memory, backing, spill; fuse while it is attached; pack buffers while a session runs."""


def serve(roles: Roles, argument: Mapping[str, Any]) -> None:
    """A volume process: answer FUSE requests until the file is unmounted.

    `argument`: first_slot, slots and spares, the request slots that are this process's own; `slots` of them have a thread.
    """
    kernel.be_io_flusher()
    kernel.one_malloc_arena()
    kernel.register_barrier()
    gc.disable()  # nothing in the loop makes cycles
    shared = Shared(roles["memory"])
    first, threads = argument["first_slot"], argument["slots"]
    numbers = range(first, first + threads + argument["spares"])
    life = RecordLocks(shared.fd)
    life.acquire(LOCK_SLOTS + numbers.start, len(numbers))  # waits for the last thread of a predecessor
    for number in numbers:
        words = shared.slot_words(number)
        words[SlotWord.ADMITTED] = 0  # what is in them is done again, from the gate on
        if not words[HEADER_WORD]:
            words[SlotWord.RESULT] = 0  # of a request that a predecessor answered last; the next one here has none
    if shared.words[Word.SESSION]:
        locks = RecordLocks(shared.fd)
        recover_reserved(shared, locks, range(numbers.start + 1, numbers.stop + 1))
        locks.close()
    backing = BackingFile(roles["backing"])
    ended: list[BaseException] = []
    gone = threading.Event()

    def make(number: int) -> Worker:
        worker = Worker(shared, number, roles["fuse"], backing, roles["spill"])
        worker.populate()
        _lock_slot(shared, number)
        return worker

    def end(error: BaseException) -> None:
        ended.append(error)
        gone.set()

    left = [number for number in numbers[threads:] if shared.slot_words(number)[HEADER_WORD]]
    parking = Parking((number for number in numbers[threads:] if number not in left), make, end)

    def run(worker: Worker) -> None:
        try:
            worker.recover()
            while True:
                try:
                    worker.run()
                except Parked as parked:
                    worker = parking.instead(worker, parked.seconds)
        except BaseException as error:  # the outermost loop of the thread: the process ends with it
            end(error)

    for number in left:
        parking.take_up(make(number))
    running = [threading.Thread(target=run, args=[make(number)], daemon=True) for number in numbers[:threads]]
    for thread in running:
        thread.start()
    gone.wait()
    if not isinstance(ended[0], Disconnected):
        raise ended[0]
    for thread in running:
        thread.join()  # what is in hand is written to its end


def sweep(roles: Roles, argument: Mapping[str, Any]) -> None:
    """A sweeper: seal every chunk of a session, if that is the one that runs.

    `argument`: session, its UUID; packs, the role of its pack buffers; bytes_per_second, 0 for no limit.
    """
    shared = Shared(roles["memory"])
    if shared.session_id() != argument["session"]:
        return
    locks = RecordLocks(shared.fd)
    pace = Pace(shared, argument["bytes_per_second"])
    packs = PackBuffers(roles[argument["packs"]])
    sweeper = Sweeper(shared, packs, BackingFile(roles["backing"]), roles["spill"], locks, pace)
    try:
        sweeper.run()
    except SessionFailed:
        return


def _lock_slot(shared: Shared, number: int) -> None:
    """Keep a request slot in memory: this process stands in the path of page reclaim. Goes on where refused."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared.map))
    with contextlib.suppress(OSError):
        kernel.mlock(address + SLOTS_AT + number * SLOT_BYTES, SLOT_BYTES)
