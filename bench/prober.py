"""The prober (prober.c): when each of a stream of 4 KiB writes was acknowledged, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.plan import Plan
from bench.programs import compiled, finish, kill, start

THREADS: Final = 16
_SLACK_SECONDS: Final = 60.0
Nanoseconds = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Writes:
    """All writes in the order of their acknowledgements; times on the clock of `time.monotonic_ns`."""

    acknowledged: Nanoseconds
    latency: Nanoseconds

    def longest_gap(self, first: int, last: int) -> float:
        """Seconds without an acknowledgement, at most, among those from `first` to `last` and the one before."""
        begin = max(int(np.searchsorted(self.acknowledged, first)) - 1, 0)
        end = int(np.searchsorted(self.acknowledged, last))
        inside = np.append(self.acknowledged[begin:end], np.uint64(last))
        return float(np.diff(inside).max(initial=0)) / 1e9

    @property
    def iops(self) -> float:
        return (len(self.acknowledged) - 1) / (float(self.acknowledged[-1] - self.acknowledged[0]) / 1e9)

    def percentile(self, share: float) -> float:
        """Microseconds that `share` per cent of the writes did not exceed."""
        return float(np.percentile(self.latency, share)) / 1000

    def between(self, first: int, last: int) -> Nanoseconds:
        """Latencies of the writes acknowledged in that time."""
        begin, end = np.searchsorted(self.acknowledged, [first, last])
        return self.latency[begin:end]


class Prober:
    """Writes to `size_bytes` of a device from `offset` on for `seconds`, at `rate` writes a second or as fast as it goes.

    With `stride`, it writes one block of each `stride` bytes once, in a scattered order, and ends.
    """

    def __init__(
        self, plan: Plan, device: str, size_bytes: int, seconds: int, *, rate: int = 0, offset: int = 0, stride: int = 0
    ) -> None:
        program = compiled(Path(__file__).with_name("prober.c"), plan.build)
        self._output = plan.folder / "prober.out"
        self._seconds = seconds
        self.started = time.monotonic_ns()
        given = [device, offset, size_bytes, THREADS, seconds, rate, stride, self._output]
        self._process = start([str(program), *map(str, given)])

    def stop(self) -> None:
        """Kill it, if it still runs."""
        kill(self._process)

    def writes(self) -> Writes:
        """Wait for the end. Raises ProgramFailed if a write failed."""
        try:
            finish(self._process, self._seconds + _SLACK_SECONDS)
            pairs = np.fromfile(self._output, dtype=np.uint64).reshape(-1, 2)
        finally:
            self._output.unlink(missing_ok=True)
        order = np.argsort(pairs[:, 0], kind="stable")
        return Writes(pairs[order, 0], pairs[order, 1])
