"""The engine's log: lines on standard error. Any process, any thread."""

from __future__ import annotations

import sys
import time


def say(who: str, text: str) -> None:
    """A line that says when, which process, and what."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {who}: {text}", file=sys.stderr, flush=True)
