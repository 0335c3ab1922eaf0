"""Waiting until something is so, instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(what: Callable[[], T | None], seconds: float = 150.0, told: Callable[[], str] = lambda: "") -> T:
    """The first true value of `what`; `told` is asked for what is known if there is none. A machine may be slow, or stand
    still: whoever waits does so for long, as it costs nothing where all is well."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s: {told()}"
        time.sleep(0.02)
    return found
