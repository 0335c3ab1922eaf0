"""A disk that remembers: a block device every write and flush of which is logged, and what a loss of power may leave of it.

The device is a loop device on a FUSE file that a process of ours serves, one request after another. A write is in the log
before it is answered, so whatever the log's length is when a call returns, what that call did stands before it. A flush
makes durable all that was answered before; of what came after, a disk may have kept any part, in any order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from driver.fuse import protocol
from driver.fuse.protocol import Op
from driver.host import kernel, loop

_ENTRY: Final = struct.Struct("<BQI")  # kind, offset, length; then the data of a WRITE
_WRITE, _ZERO, _FLUSH = 1, 2, 3
_SECTOR: Final = 512
_HEAD_BYTES: Final = 40 + 40
_EMPTY: Final = (Op.FLUSH, Op.RELEASE, Op.DESTROY)


@dataclass(frozen=True)
class LogDisk:
    """`device` is the block device, `log` what happened to it, `start` an image of it when the log was empty."""

    device: str
    log: Path
    start: Path

    def break_range(self, kind: str, first: int, last: int) -> None:
        """From now on, each request of `kind` (read or write) that touches [first, last) ends with EIO."""
        beside = self.log.with_name("broken.new")
        beside.write_text(f"{kind} {first} {last}")
        beside.rename(self.log.with_name("broken"))

    def repair(self) -> None:
        self.log.with_name("broken").unlink(missing_ok=True)

    def position(self) -> int:
        """The log's length, in bytes: all that has returned so far stands before it."""
        return self.log.stat().st_size


@contextlib.contextmanager
def logdisk(folder: Path, size_bytes: int) -> Iterator[LogDisk]:
    """A disk of zeros; `start` is sparse."""
    image, log, file = folder / "image", folder / "log", folder / "file"
    for path in (image, folder / "start"):
        with path.open("wb") as made:
            made.truncate(size_bytes)
    log.touch()
    file.touch(mode=0o600)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    kernel.mount("logdisk", str(file), "fuse", kernel.MS_NODEV,
                 f"fd={fuse},rootmode=100600,user_id=0,group_id=0,max_read={protocol.MAX_WRITE_BYTES}")  # fmt: skip
    command = [sys.executable, "-m", "tests.power.logdisk", str(fuse), str(image), str(log), str(size_bytes)]
    server = subprocess.Popen(command, pass_fds=[fuse], cwd=Path(__file__).resolve().parents[2])
    os.close(fuse)
    node = str(folder / "device")
    try:
        device = loop.attach(str(file), node, 4096, "logdisk")
        try:
            yield LogDisk(f"/dev/loop{device.number}", log, folder / "start")
        finally:
            loop.detach(node, device)
    finally:
        kernel.umount(str(file), kernel.MNT_DETACH)
        server.kill()
        server.wait()


def _serve(fuse: int, image_path: Path, log_path: Path, size_bytes: int) -> NoReturn:
    """The process behind the device."""
    image = os.open(image_path, os.O_RDWR)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    broken = log_path.with_name("broken")
    message = memoryview(bytearray(protocol.MAX_WRITE_BYTES + 4096))
    others: dict[int, Callable[[int], bytes]] = {
        Op.GETATTR: lambda unique: protocol.answer_attr(unique, size_bytes),
        Op.SETATTR: lambda unique: protocol.answer_attr(unique, size_bytes),
        Op.OPEN: protocol.answer_open,
        Op.STATFS: lambda unique: protocol.answer_statfs(unique, size_bytes),
        Op.INIT: lambda unique: protocol.answer_init(unique, message),
    }
    while True:
        os.readv(fuse, [message])
        head = protocol.parse_head(message)
        if _is_broken(broken, head.opcode, message):
            answer = protocol.answer_error(head.unique, errno.EIO)
        elif head.opcode == Op.WRITE:
            extent = protocol.parse_io(message)
            data = message[_HEAD_BYTES : _HEAD_BYTES + extent.length]
            os.writev(log, [_ENTRY.pack(_WRITE, extent.offset, extent.length), data])
            os.pwrite(image, data, extent.offset)
            answer = protocol.answer_write(head.unique, extent.length)
        elif head.opcode == Op.READ:
            extent = protocol.parse_io(message)
            read = os.pread(image, extent.length, extent.offset)
            answer = protocol.answer_data_head(head.unique, len(read)) + read
        elif head.opcode == Op.FALLOCATE:
            extent = protocol.parse_fallocate(message)
            os.write(log, _ENTRY.pack(_ZERO, extent.offset, extent.length))
            _zero(image, extent.offset, extent.length)
            answer = protocol.answer(head.unique)
        elif head.opcode == Op.FSYNC:
            os.write(log, _ENTRY.pack(_FLUSH, 0, 0))
            answer = protocol.answer(head.unique)
        elif head.opcode in protocol.UNANSWERED:
            continue
        else:
            make = others.get(head.opcode, protocol.answer if head.opcode in _EMPTY else _unknown)
            answer = make(head.unique)
        with contextlib.suppress(FileNotFoundError):
            os.write(fuse, answer)


def _is_broken(broken: Path, opcode: int, message: memoryview) -> bool:
    kinds = {Op.READ: "read", Op.WRITE: "write"}
    if opcode not in kinds:
        return False
    try:
        kind, first, last = broken.read_text().split()
    except FileNotFoundError:
        return False
    extent = protocol.parse_io(message)
    return kind == kinds[Op(opcode)] and extent.offset < int(last) and extent.offset + extent.length > int(first)


def _unknown(unique: int) -> bytes:
    return protocol.answer_error(unique, errno.ENOSYS)


def _zero(image: int, offset: int, length: int) -> None:
    kernel.fallocate(image, protocol.FALLOC_FL_PUNCH_HOLE | protocol.FALLOC_FL_KEEP_SIZE, offset, length)


@dataclass(frozen=True)
class Entry:
    kind: int
    offset: int
    length: int
    data_at: int
    """Where in the log the data of a write stands."""
    end: int


def entries(log: Path) -> list[Entry]:
    """What happened, in its order."""
    found = []
    with log.open("rb") as file:
        while head := file.read(_ENTRY.size):
            kind, offset, length = _ENTRY.unpack(head)
            at = file.tell()
            if kind == _WRITE:
                file.seek(length, os.SEEK_CUR)
            found.append(Entry(kind, offset, length, at, file.tell()))
    return found


def lose_power(disk: LogDisk, target: Path, position: int, dice: random.Random) -> None:
    """Make at `target` what the disk may hold after a loss of power at a log position.

    All that was flushed, and of each later write nothing, all, or some sectors of it, in any order.
    """
    happened = [entry for entry in entries(disk.log) if entry.end <= position]
    flushed = max((index for index, entry in enumerate(happened) if entry.kind == _FLUSH), default=-1)
    later = [entry for entry in happened[flushed + 1 :] if dice.random() < 0.5]
    dice.shuffle(later)
    shutil.copyfile(disk.start, target)
    with disk.log.open("rb") as log, target.open("r+b") as image:
        for entry in happened[:flushed]:
            _apply(entry, log.fileno(), image.fileno(), 0, entry.length)
        for entry in later:
            first = last = 0
            if dice.random() < 0.3:
                first, last = sorted(dice.randrange(entry.length // _SECTOR + 1) * _SECTOR for _ in range(2))
            _apply(entry, log.fileno(), image.fileno(), first, last or entry.length)


def _apply(entry: Entry, log: int, image: int, first: int, last: int) -> None:
    """Bytes [first, last) of an entry."""
    if entry.kind == _WRITE:
        os.pwrite(image, os.pread(log, last - first, entry.data_at + first), entry.offset + first)
    elif entry.kind == _ZERO and last > first:
        _zero(image, entry.offset + first, last - first)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
