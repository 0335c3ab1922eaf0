"""Sessions into stores that are slow or do not answer: the tail of the write latency, and its course over a snapshot.

The store answers until the cut is made, as it must; then its gate is closed or narrowed.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from bench import fio
from bench.engine import Engine, engine, snapshot, volume
from bench.gate import FAST
from bench.plan import MIB, UPLOAD_RATE, Plan, rotated
from bench.plots import Course, draw
from bench.prober import Prober
from bench.report import AT_MOST, Results
from bench.servers import Store, store
from bench.subjects import OURS

VOLUME: Final = "bench"
P999: Final = 2.0
_OUTAGE_BYTES: Final = 64 * MIB
"""Working set of the row: all its pre-images take a third of the default memory of a session."""
_SLOW_BYTES_PER_SECOND: Final = 2_000_000
_STORES: Final = {"idle store": FAST, "store at 2 MB/s": _SLOW_BYTES_PER_SECOND, "no store": 0}
_COURSE_RATE: Final = 4000
_BEFORE_SECONDS: Final = 10
_DURING_SECONDS: Final = 20
_AFTER_SECONDS: Final = 10


def measure(plan: Plan, results: Results) -> None:
    """The row of the table in all rounds; the courses once."""
    with (
        store(plan, plan.store) as server,
        engine(plan, server, "--upload-rate", UPLOAD_RATE) as running,
        volume(running, VOLUME, plan.file_bytes) as device,
    ):
        for number in range(plan.rounds):
            _tail(plan, results, running, server, device, number)
        courses = [_course(plan, running, server, device, name) for name in _STORES]
    for course in courses:
        for phase, latency in course.phases().items():
            if latency.size:
                p99 = float(np.percentile(latency, 99)) / 1000
                results.case(f"course: {course.name}, {phase}, p99", OURS, p99, "µs")
    draw(courses, plan.docs / "performance-latency.svg")


def _tail(plan: Plan, results: Results, running: Engine, server: Store, device: str, number: int) -> None:
    """p99.9 at half the capacity in a session with a store, and in one without."""
    at = plan.file_bytes - _OUTAGE_BYTES
    capacity = fio.measure(device, fio.Job("randwrite", 16, plan.seconds, offset_bytes=at, size_bytes=_OUTAGE_BYTES))
    job = fio.Job("randwrite", 16, plan.seconds, rate_iops=int(capacity.iops / 2), offset_bytes=at, size_bytes=_OUTAGE_BYTES)
    tails = {}
    for name, rate in rotated([("a store that answers", FAST), ("a store that does not", 0)], number):
        fio.fill(device, _OUTAGE_BYTES, at)
        with snapshot(running, VOLUME):
            server.gate.set_rate(rate)
            try:
                tails[rate] = fio.measure(device, job).p999
            finally:
                server.gate.set_rate(FAST)
        results.case(f"session: p99.9 with {name}", OURS, tails[rate], "µs")
    results.ratio("p99.9 without a store of that with one", tails[0] / tails[FAST], AT_MOST, P999)


def _course(plan: Plan, running: Engine, server: Store, device: str, name: str) -> Course:
    """Writes at a fixed rate before, during and after a snapshot, which is deleted if it does not end by itself."""
    phases = (_BEFORE_SECONDS, _DURING_SECONDS, _AFTER_SECONDS)
    before, during, after = (max(1, seconds // 4) if plan.quick else seconds for seconds in phases)
    fio.fill(device, plan.file_bytes)
    prober = Prober(plan, device, plan.file_bytes, before + during + after, rate=_COURSE_RATE)
    try:
        time.sleep(before)
        asked = time.monotonic_ns()
        with snapshot(running, VOLUME) as taken:
            server.gate.set_rate(_STORES[name])
            deadline = time.monotonic() + during
            while taken.runs and time.monotonic() < deadline:
                time.sleep(0.1)
            committed = taken.description["state"] == "committed"
            server.gate.set_rate(FAST)
        ended = time.monotonic_ns()
        writes = prober.writes()
    finally:
        server.gate.set_rate(FAST)
        prober.stop()
    return Course(name, writes, asked, ended, committed)
