"""The table of processes that the keeper keeps alive, and when one is given up. Pure: no process is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

DEATHS_MAX: Final = 5
WITHIN_SECONDS: Final = 10.0


@dataclass(slots=True)
class Process:
    """`driver.volume.process.<name>(roles, argument)` for a volume, known by its key; pid 0 while it does not run."""

    volume: str
    key: str
    name: str
    argument: Mapping[str, Any]
    pid: int = 0
    finished: bool = False
    given_up: bool = False
    deaths: list[float] = field(default_factory=list)
    deaths_in_all: int = 0


class Kept:
    """All kept processes of all volumes."""

    def __init__(self, processes: Iterable[Process] = ()) -> None:
        self._processes = {(process.volume, process.key): process for process in processes}

    def add(self, process: Process) -> None:
        """One with its volume and key that has not finished stays as it is."""
        known = self._processes.get((process.volume, process.key))
        if known is None or known.finished:
            self._processes[process.volume, process.key] = process

    def named(self, volume: str, key: str | None) -> list[Process]:
        """The volume's process `key`, or all of them."""
        return [p for p in self._processes.values() if p.volume == volume and key in (None, p.key)]

    def remove(self, volume: str, key: str | None) -> list[Process]:
        """Forget the volume's process `key`, or all of them; they are the caller's to kill and reap."""
        gone = self.named(volume, key)
        for process in gone:
            del self._processes[process.volume, process.key]
        return gone

    def give_up(self, volume: str, name: str) -> list[Process]:
        """Start the volume's processes of that name no more; those that run are the caller's to kill."""
        given_up = [p for p in self._processes.values() if (p.volume, p.name) == (volume, name)]
        for process in given_up:
            process.finished = process.given_up = True
        return given_up

    def all(self) -> list[Process]:
        return list(self._processes.values())

    def died(self, pid: int, code: int, now: float) -> Process | None:
        """Note a death; the process if it is to be given up. Code 0 means that its work is done."""
        process = next((p for p in self._processes.values() if p.pid == pid), None)
        if process is None:
            return None
        process.pid = 0
        if code == 0 or process.given_up:
            process.finished = True
            return None
        process.deaths_in_all += 1
        process.deaths = [when for when in process.deaths if now - when < WITHIN_SECONDS] + [now]
        if len(process.deaths) >= DEATHS_MAX:
            process.finished = process.given_up = True
            return process
        return None

    def due(self) -> list[Process]:
        """Those that are to be started again."""
        return [p for p in self._processes.values() if not p.pid and not p.finished]

    def describe(self, volume: str) -> list[dict[str, Any]]:
        return [
            {
                "key": p.key,
                "pid": p.pid,
                "finished": p.finished,
                "given_up": p.given_up,
                "deaths": p.deaths_in_all,
            }
            for p in self._processes.values()
            if p.volume == volume
        ]
