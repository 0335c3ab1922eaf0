"""Throttled writes wait aside: the thread that received one goes on to serve others. The kernel's end is a socket."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from pathlib import Path

import pytest

from driver.core.ids import new_id
from driver.core.sizes import MIB
from driver.fuse.protocol import Op
from driver.host import disks
from driver.host.locks import RecordLocks
from driver.volume import process, session
from driver.volume.layout import HEADER_WORD, LOCK_SLOTS, OnFull, Shared, SlotWord, Word
from tests.memory import served_memory
from tests.waiting import wait_until

SIZE = MIB
THREADS, SPARES = 1, 2
KEPT: list[Volume] = []
"""Their threads read until the tests end."""
_HEAD = struct.Struct("<IIQQIIII")
_IO = struct.Struct("<QQIIQII")


def request(opcode: Op, unique: int, offset: int, data: bytes = b"", size: int = 0) -> bytes:
    """A READ or WRITE as the kernel sends it (linux/fuse.h)."""
    body = _IO.pack(0, offset, size or len(data), 0, 0, 0, 0) + data
    return _HEAD.pack(_HEAD.size + len(body), opcode, unique, 1, 0, 0, 0, 0) + body


class Volume:
    """A volume process in a thread, with one thread and two spare slots; `kernel` is the other end of its /dev/fuse."""

    def __init__(self, path: Path) -> None:
        disks.create(path, SIZE, thick=False)
        self.memory = served_memory(SIZE, True, THREADS + SPARES)
        self.shared = Shared(self.memory)
        self.kernel, self.fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.fuse):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        self.kernel.settimeout(150)
        self.path = path
        self.backing = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.spill = os.memfd_create("spill")

    def serve(self) -> None:
        roles = {"memory": self.memory, "fuse": self.fuse.fileno(), "backing": self.backing, "spill": self.spill}
        argument = {"first_slot": 0, "slots": THREADS, "spares": SPARES}
        threading.Thread(target=process.serve, args=[roles, argument], daemon=True).start()

    def begin(self, memory: int, spill: int) -> None:
        """A session whose buffer is nearly full: its throttle is at its strongest."""
        session.begin([session.Part(self.shared, new_id(), session.Limits(memory, spill, OnFull.THROTTLE))], 60)

    def taken(self) -> int:
        """How many slots hold a request."""
        return sum(self.shared.slot_words(number)[HEADER_WORD] != 0 for number in range(THREADS + SPARES))

    def block(self, offset: int) -> bytes:
        """4 KiB of the backing file."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(4096)

    def answer(self) -> tuple[int, int]:
        """The unique and the error of the next answer."""
        _, error, unique = struct.unpack_from("<IiQ", self.kernel.recv(2 * MIB))
        return unique, error


@pytest.fixture
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    folder = tmp_path_factory.mktemp("parking")
    made = Volume(folder / "disk")
    KEPT.append(made)
    return made


def test_reads_pass_a_parked_write(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The throttle is an hour here: an answer can only come from the same thread going on with another slot."""
    monkeypatch.setattr("driver.volume.capture.THROTTLE_SECONDS_MAX", 3600.0)
    volume.begin(memory=0, spill=16)
    volume.serve()
    for number in range(SPARES):
        volume.kernel.send(request(Op.WRITE, 10 + number, number * 65536, b"\1" * 4096))
    volume.kernel.send(request(Op.READ, 20, 0, size=4096))
    assert volume.answer() == (20, 0)
    volume.kernel.send(request(Op.FSYNC, 21, 0))
    assert volume.answer() == (21, 0)
    wait_until(lambda: volume.taken() <= SPARES)  # an answer comes before its slot is free
    assert volume.taken() == SPARES
    assert not any(volume.shared.slot_words(number)[SlotWord.ADMITTED] for number in range(THREADS + SPARES))


def test_a_parked_write_is_done_when_its_time_has_come(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driver.volume.capture.THROTTLE_SECONDS_MAX", 0.05)
    volume.begin(memory=0, spill=64)
    volume.serve()
    for number in range(12):
        volume.kernel.send(request(Op.WRITE, 10 + number, number * 65536, bytes([1 + number]) * 4096))
    answers = {volume.answer() for _ in range(12)}
    assert answers == {(10 + number, 0) for number in range(12)}
    for number in range(12):
        assert volume.block(number * 65536) == bytes([1 + number]) * 4096
    assert volume.shared.words[Word.FAILED] == 0
    assert sum(volume.shared.slot_words(number)[SlotWord.THROTTLED] for number in range(THREADS + SPARES)) >= 1


def test_a_successor_does_what_was_parked(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests stand in the spare slots of a process that died: one parked, one in hand."""
    volume.begin(memory=0, spill=16)
    for number in (1, 2):
        message = request(Op.WRITE, 30 + number, number * 65536, bytes([number]) * 4096)
        slot = volume.shared.slot(number)
        slot[HEADER_WORD * 8 : HEADER_WORD * 8 + len(message)] = message
    volume.shared.slot_words(2)[SlotWord.ADMITTED] = 1
    volume.serve()
    assert {volume.answer() for _ in range(2)} == {(31, 0), (32, 0)}
    for number in (1, 2):
        assert volume.block(number * 65536) == bytes([number]) * 4096


def test_an_answered_write_is_not_done_over_a_newer_one(volume: Volume) -> None:
    """W1 was answered, its slot not yet freed; W2 to the same place was answered; then the process was killed."""
    with volume.path.open("r+b") as file:
        file.write(b"2" * 4096)  # W2
    message = request(Op.WRITE, 41, 0, b"1" * 4096)
    slot = volume.shared.slot(0)
    slot[HEADER_WORD * 8 : HEADER_WORD * 8 + len(message)] = message
    volume.shared.slot_words(0)[SlotWord.RESULT] = 1 << 32
    volume.serve()
    assert volume.answer() == (41, 0)  # again: the kernel says ENOENT to that
    volume.kernel.send(request(Op.READ, 42, 0, size=4096))
    assert volume.kernel.recv(2 * MIB)[16:] == b"2" * 4096


def test_a_spare_slot_whose_last_request_was_answered_serves_the_next_one(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was killed between freeing a spare slot and forgetting the result: the next request there has none."""
    monkeypatch.setattr("driver.volume.capture.THROTTLE_SECONDS_MAX", 0.05)
    for number in range(THREADS, THREADS + SPARES):
        volume.shared.slot_words(number)[SlotWord.RESULT] = 1 << 32
    volume.begin(memory=0, spill=64)
    volume.serve()
    for number in range(12):
        volume.kernel.send(request(Op.WRITE, 10 + number, number * 65536, b"w" * 4096))
    assert {volume.answer() for _ in range(12)} == {(10 + number, 0) for number in range(12)}
    assert all(volume.block(number * 65536) == b"w" * 4096 for number in range(12))


def test_a_successor_waits_for_the_last_thread_of_the_dead(volume: Volume) -> None:
    """A thread of a killed process may still be in the middle of a write: whoever does it again waits until it is dead."""
    message = request(Op.WRITE, 51, 0, b"1" * 4096)
    volume.shared.slot(0)[HEADER_WORD * 8 : HEADER_WORD * 8 + len(message)] = message
    life = RecordLocks(volume.memory)
    life.acquire(LOCK_SLOTS, THREADS + SPARES)
    volume.serve()
    assert not select.select([volume.kernel], [], [], 0.5)[0], "it is answered"
    assert volume.block(0) == bytes(4096), "it is done"
    life.close()
    assert volume.answer() == (51, 0)
    assert volume.block(0) == b"1" * 4096
