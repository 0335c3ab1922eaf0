"""The engine's log: lines on standard error. Any process, any thread."""

from __future__ import annotations

import contextlib
import sys
import time


def say(who: str, text: str) -> None:
    """A line that says when, which process, and what. It is lost if nobody reads any more: devices outlive their log."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {who}: {text}", file=sys.stderr, flush=True)
