"""Without a session: 4 KiB random reads and writes, writes with fdatasync, 1 MiB sequential; all subjects."""

from __future__ import annotations

from typing import Final

from bench import fio
from bench.plan import MIB, Plan, rotated
from bench.report import AT_LEAST, Results
from bench.subjects import DAEMON, LIMIT, LOOP, OURS, steady_subjects

_SEQUENTIAL_DEPTH: Final = 8
OF_LIMIT: Final = 0.90
OF_LOOP: Final = 0.90
OF_DAEMON: Final = {"write qd16": 1.5}
OF_DAEMON_OTHERS: Final = 1.0


def jobs(seconds: int) -> dict[str, fio.Job]:
    """What each subject does, in this order."""
    return {
        "write qd1": fio.Job("randwrite", 1, seconds),
        "write qd16": fio.Job("randwrite", 16, seconds),
        "read qd1": fio.Job("randread", 1, seconds),
        "read qd16": fio.Job("randread", 16, seconds),
        "write + fdatasync": fio.Job("randwrite", 1, seconds, fdatasync=True),
        "sequential write": fio.Job("write", _SEQUENTIAL_DEPTH, seconds, block_bytes=MIB),
        "sequential read": fio.Job("read", _SEQUENTIAL_DEPTH, seconds, block_bytes=MIB),
    }


def measure(plan: Plan, results: Results) -> None:
    """All rounds; another subject comes first in each."""
    for number in range(plan.rounds):
        measured = {}
        for subject, opened in rotated(list(steady_subjects().items()), number):
            with opened(plan) as device:
                measured[subject] = {name: fio.measure(device, job) for name, job in jobs(plan.seconds).items()}
        for subject in steady_subjects():
            _record(results, subject, measured[subject])
        _compare(results, measured)


def _record(results: Results, subject: str, measured: dict[str, fio.Result]) -> None:
    for name, result in measured.items():
        if name.startswith("sequential"):
            results.case(f"steady: {name}", subject, result.bytes_per_second / 1e6, "MB/s")
        else:
            results.case(f"steady: {name}", subject, result.iops, "IOPS")
            results.case(f"steady: {name}, p99", subject, result.p99, "µs")


def _compare(results: Results, measured: dict[str, dict[str, fio.Result]]) -> None:
    ours = measured[OURS]
    for name in ours:
        if name.startswith("sequential"):
            ratio = ours[name].bytes_per_second / measured[LOOP][name].bytes_per_second
            results.ratio(f"{name} of plain loop's", ratio, AT_LEAST, OF_LOOP)
            continue
        results.ratio(f"{name} of fuse_limit's", ours[name].iops / measured[LIMIT][name].iops, AT_LEAST, OF_LIMIT)
        bound = OF_DAEMON.get(name, OF_DAEMON_OTHERS)
        results.ratio(f"{name} of storage daemon's", ours[name].iops / measured[DAEMON][name].iops, AT_LEAST, bound)
