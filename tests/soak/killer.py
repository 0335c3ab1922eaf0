"""Kills processes of an engine at random moments, none so often that the keeper gives it up."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from driver.core.errors import StillframeError
from driver.volume.layout import LOCK_CHUNKS, LOCK_GATE
from tests.engines import Engine

_APART_SECONDS: Final = 3.5
"""Between two deaths of one process: five within ten seconds would be the end of it, and a death may be noticed late."""
_WITHIN_SECONDS: Final = 10.0
_TRIES: Final = 200
_LOCK: Final = re.compile(r"^lock:\s+\d+: OFDLCK\s+ADVISORY\s+WRITE -?\d+ \S+ (\d+) (\d+|EOF)$", re.M)


class Killer:
    """SIGKILLs of one engine's processes, counted by kind."""

    def __init__(self, engine: Engine, dice: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self.within_seal = 0
        self._engine = engine
        self._dice = dice
        self._deaths: dict[str, list[float]] = {}  # by the process's name
        self._kinds: dict[str, Callable[[dict[str, Any]], list[tuple[str, int]]]] = {
            "volume process": lambda seen: self._kept(seen, "serve"),
            "sweeper": lambda seen: self._kept(seen, "sweep"),
            "sender": lambda seen: [(f"sender {pid}", pid) for pid in children(seen["transfer"])],
            "transfer supervisor": lambda seen: [("transfer", seen["transfer"])],
            "engine service": lambda seen: [("service", seen["service"])],
        }

    def one(self) -> None:
        """Kill something, of the kind that had least so far as often as another."""
        fewest = min(self._kinds, key=lambda kind: self.kills[kind])
        kind = self._dice.choice([fewest, self._dice.choice(list(self._kinds))])
        with contextlib.suppress(StillframeError, OSError):
            seen = self._engine.call("engine.info")["processes"]
            now = time.monotonic()
            found = [
                (name, pid)
                for name, pid in self._kinds[kind](seen)
                if pid and self._deaths.get(name, [0.0])[-1] < now - _APART_SECONDS
            ]
            if not found:
                return
            name, pid = self._dice.choice(found)
            if kind == "sweeper" and self._dice.random() < 0.7:
                self.within_seal += stop_within_seal(pid)
            os.kill(pid, signal.SIGKILL)
            self._deaths.setdefault(name, []).append(time.monotonic())
            self.kills[kind] += 1

    def is_content(self) -> bool:
        """Whether something of each kind was killed three times."""
        return all(self.kills[kind] >= 3 for kind in self._kinds)

    def most_deaths(self) -> int:
        """How often one process died within ten seconds, at most: five times would be the end of it."""
        return max((_most_within(times, _WITHIN_SECONDS) for times in self._deaths.values()), default=0)

    @staticmethod
    def _kept(seen: dict[str, Any], prefix: str) -> list[tuple[str, int]]:
        return [
            (f"{volume} {process['key']}", process["pid"])
            for volume, held in seen["volumes"].items() for process in held["processes"]
            if process["key"].startswith(prefix)
        ]  # fmt: skip


def _most_within(times: list[float], seconds: float) -> int:
    return max(sum(1 for other in times if 0 <= other - first < seconds) for first in times)


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    if not pid:
        return []
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, (task / "children").read_text().split())
    return found


def stop_within_seal(pid: int) -> bool:
    """Stop the sweeper `pid` while it holds a chunk's lock: between its look at the chunk and the end of the seal. Whether
    that was met; else it runs on."""
    for _ in range(_TRIES):
        os.kill(pid, signal.SIGSTOP)
        if _holds_chunk_lock(pid):
            return True
        os.kill(pid, signal.SIGCONT)
        time.sleep(random.random() * 0.002)
    return False


def _holds_chunk_lock(pid: int) -> bool:
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        for start, _ in _LOCK.findall(info.read_text()):
            if LOCK_CHUNKS <= int(start) < LOCK_GATE:
                return True
    return False
