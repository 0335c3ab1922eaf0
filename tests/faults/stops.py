"""An engine of which one process stops at a point of its code, to be killed there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.engines import Engine, engine
from tests.waiting import wait_until

_HERE = Path(__file__).parent / "stopping"


@contextlib.contextmanager
def engine_that_stops(at: str, *arguments: str) -> Iterator[tuple[Engine, Callable[[], int]]]:
    """A running engine, and a function that waits until a process of it has stopped at `at`: `<event> <file> <function>`, as
    stopping/sitecustomize.py says. It gives the process's id."""
    with engine(*arguments) as made:
        stopped = made.state.parent / "stopped"

        def wait() -> int:
            return int(wait_until(lambda: stopped.read_text() if stopped.exists() else None))

        made.stop()
        yield made.start({"PYTHONPATH": str(_HERE), "STILLFRAME_STOP_AT": at, "STILLFRAME_STOPPED": str(stopped)}), wait
