"""Time that passes for the whole world, not only for this machine while it is awake. Any thread."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the boot, those included in which the machine slept (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
