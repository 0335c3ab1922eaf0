"""The pause of a cut: the longest time without an acknowledgement with 16 writes in hand, at a snapshot.

Windows of the same length without a cut show what the device and the scheduler do by themselves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

from bench import fio
from bench.engine import Engine, engine, snapshot, volume
from bench.plan import MIB, Plan
from bench.prober import Prober
from bench.report import AT_MOST, Results
from bench.servers import store
from bench.subjects import OURS

VOLUME: Final = "bench"
PAUSE_MILLISECONDS: Final = 10.0
LARGEST_BYTES: Final = (16 << 40) - (64 << 10)
_SIZE_BYTES: Final = 512 * MIB
_WRITTEN_BYTES: Final = 256 * MIB
_CUTS: Final = 5
_QUIET_SECONDS: Final = 2.0
_BESIDE_SECONDS: Final = 0.2


def measure(plan: Plan, results: Results) -> None:
    """All rounds, a few cuts in each, on an ordinary volume and on the largest one."""
    for _ in range(plan.rounds):
        with store(plan, plan.store) as server, engine(plan, server) as running:
            with volume(running, VOLUME, plan.scaled(_SIZE_BYTES)) as device:
                _cuts(plan, results, running, device, "cut")
            with volume(running, VOLUME, LARGEST_BYTES, "thin", fill=False) as device:
                fio.fill(device, plan.scaled(_WRITTEN_BYTES))
                _cuts(plan, results, running, device, "cut of the largest sparse volume")


def _cuts(plan: Plan, results: Results, running: Engine, device: str, name: str) -> None:
    cuts = 2 if plan.quick else _CUTS
    seconds = int(_QUIET_SECONDS + cuts * (_QUIET_SECONDS + 1) + 2)
    prober = Prober(plan, device, plan.scaled(_WRITTEN_BYTES), seconds)
    windows = []
    requests = []
    reported = []
    try:
        for _ in range(cuts):
            time.sleep(_QUIET_SECONDS)
            started = time.monotonic_ns()
            with snapshot(running, VOLUME) as taken:
                answered = time.monotonic_ns()
                requests.append((answered - started) / 1e6)
                windows.append((started, answered + int(_BESIDE_SECONDS * 1e9)))
                time.sleep(_BESIDE_SECONDS)
                reported.append(taken.look()["session"]["cut_seconds"] * 1000)
        writes = prober.writes()
    finally:
        prober.stop()
    with_cut = [writes.longest_gap(first, last) * 1000 for first, last in windows]
    shift = int((_QUIET_SECONDS - 0.2) * 1e9)
    without = [writes.longest_gap(first - shift, last - shift) * 1000 for first, last in windows]
    over: Callable[[list[float]], float] = statistics.median
    results.case(f"{name}: longest gap between acknowledgements", OURS, over(with_cut), "ms")
    results.case(f"{name}: longest gap of the slowest cut", OURS, max(with_cut), "ms")
    results.case(f"{name}: longest gap without a cut", OURS, over(without), "ms")
    results.case(f"{name}: gate closed", OURS, over(reported), "ms")
    results.case(f"{name}: the request of the snapshot", OURS, over(requests), "ms")
    results.ratio(f"pause of a {name}", over(with_cut), AT_MOST, PAUSE_MILLISECONDS, unit="ms")
