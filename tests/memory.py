"""A volume's shared memory as tests make it."""

from __future__ import annotations

from driver.volume.layout import Shared, create_memory
from driver.volume.session import set_slots


def served_memory(size_bytes: int, thin: bool, slot_count: int) -> int:
    """A new memfd laid out for a volume of `size_bytes` bytes that is served with `slot_count` request slots."""
    fd = create_memory(size_bytes, thin)
    shared = Shared(fd)
    set_slots(shared, slot_count)
    shared.close()
    return fd
