"""How long a volume stands still: when one of its processes is killed, and when a new engine takes 20 volumes over.

The slowest of all writes around that moment, with 16 in hand: who was in hand of the dead process waits for its successor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from typing import Final

from bench.engine import Engine, engine, volume
from bench.plan import MIB, Plan
from bench.prober import Prober
from bench.programs import daemon, python_module, wait_until
from bench.report import AT_MOST, Results
from bench.subjects import OURS
from driver.core.errors import StillframeError

_SIZE_BYTES: Final = 256 * MIB
_SMALL_BYTES: Final = 16 * MIB
_VOLUMES: Final = 20
_KILLS: Final = 5
_APART_SECONDS: Final = 3.0  # five deaths within ten seconds are the end of a process
_BESIDE_SECONDS: Final = 1.0
_REPLACED_MILLISECONDS: Final = 200.0
_TAKEN_MILLISECONDS: Final = 500.0
_VOLUME: Final = "bench"


def measure(plan: Plan, results: Results) -> None:
    for _ in range(plan.rounds):
        for processes in (1, 2):
            with engine(plan, None, "--processes", str(processes)) as running:
                _kills(plan, results, running, processes)
        _takeovers(plan, results)


def _kills(plan: Plan, results: Results, running: Engine, processes: int) -> None:
    kills = 2 if plan.quick else _KILLS
    with volume(running, _VOLUME, plan.scaled(_SIZE_BYTES)) as device:
        prober = Prober(plan, device, plan.scaled(_SIZE_BYTES), int((kills + 1) * _APART_SECONDS + 2))
        windows = []
        try:
            for _ in range(kills):
                time.sleep(_APART_SECONDS - _BESIDE_SECONDS)
                started = time.monotonic_ns()
                os.kill(_process(running), signal.SIGKILL)
                time.sleep(_BESIDE_SECONDS)
                windows.append((started, time.monotonic_ns()))
            writes = prober.writes()
        finally:
            prober.stop()
    slowest = [float(writes.between(first, last).max()) / 1e6 for first, last in windows]
    name = f"death of a volume process, {processes} a volume"
    results.case(f"{name}: slowest write of the worst", OURS, max(slowest), "ms")
    results.ratio(f"slowest write at the {name}", statistics.median(slowest), AT_MOST, _REPLACED_MILLISECONDS, unit="ms")


def _process(running: Engine) -> int:
    held = running.call("engine.info")["processes"]["volumes"].values()
    return next(int(p["pid"]) for volume in held for p in volume["processes"] if p["key"] == "serve-0")


def _takeovers(plan: Plan, results: Results) -> None:
    """All devices are open; the one with the writes in hand is neither the first nor the last to be served again."""
    with contextlib.ExitStack() as successors, engine(plan) as running, contextlib.ExitStack() as others:
        half = _VOLUMES // 2
        for number in range(half):
            others.enter_context(volume(running, f"a{number}", _SMALL_BYTES))
        device = others.enter_context(volume(running, _VOLUME, plan.scaled(_SIZE_BYTES)))
        for number in range(half, _VOLUMES - 1):
            others.enter_context(volume(running, f"z{number}", _SMALL_BYTES))
        turns = 1 if plan.quick else 3
        prober = Prober(plan, device, plan.scaled(_SIZE_BYTES), int(turns * 6 + 4))
        windows = []
        try:
            for _ in range(turns):
                time.sleep(1)
                started = time.monotonic_ns()
                _take_over(running, successors)
                time.sleep(_BESIDE_SECONDS)
                windows.append((started, time.monotonic_ns()))
            writes = prober.writes()
        finally:
            prober.stop()
    slowest = [float(writes.between(first, last).max()) / 1e6 for first, last in windows]
    results.case("handover of 20 volumes: slowest write of the worst", OURS, max(slowest), "ms")
    name = "slowest write at a handover of 20 volumes"
    results.ratio(name, statistics.median(slowest), AT_MOST, _TAKEN_MILLISECONDS, unit="ms")


def _take_over(running: Engine, successors: contextlib.ExitStack) -> None:
    """Start a new engine in the old one's place; it runs until it is told to stop, or until `successors` ends."""
    command = python_module("driver.engine", "--state", str(running.state), "--take-over")
    process = successors.enter_context(daemon(command, running.log, stop_seconds=60))

    def is_taken() -> bool:
        with contextlib.suppress(OSError, StillframeError):
            return int(running.call("engine.info")["keeper"]) == process.pid
        return False

    wait_until("the new engine", is_taken, process, running.log)
