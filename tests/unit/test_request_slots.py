"""Request slots: what must be so before the kernel copies a request into one."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from driver.core.sizes import MIB
from driver.host import disks
from driver.volume.backing import BackingFile
from driver.volume.layout import PAGE, SLOT_BYTES, SLOTS_AT, Shared
from driver.volume.requests import Worker
from tests.memory import served_memory

PRESENT = 1 << 63


def present(shared: Shared, number: int) -> int:
    """How many pages of a slot are in this process's own page table (/proc/self/pagemap)."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(shared.map)) + SLOTS_AT + number * SLOT_BYTES
    pages = SLOT_BYTES // PAGE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // PAGE * 8)
        return sum(bool(entry & PRESENT) for (entry,) in struct.iter_unpack("Q", pagemap.read(pages * 8)))


def test_a_slots_pages_are_present_in_each_new_process_before_it_receives(tmp_path: Path) -> None:
    """A SIGKILL while the kernel copies into absent ones becomes an I/O error of the volume's user."""
    memory = served_memory(MIB, True, 2)
    disks.create(tmp_path / "disk", MIB, thick=False)
    backing = BackingFile(os.open(tmp_path / "disk", os.O_RDWR | os.O_DIRECT))
    for _ in range(2):  # the second mapping is a successor's: the memory has its pages, its page table has not
        shared = Shared(memory)
        worker = Worker(shared, 0, -1, backing, None)
        assert present(shared, 0) < SLOT_BYTES // PAGE
        worker.populate()
        assert present(shared, 0) == SLOT_BYTES // PAGE
