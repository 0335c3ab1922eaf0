"""Plots of the write latency before, during and after a snapshot, one panel a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot

from bench.prober import Nanoseconds, Writes

_BIN_SECONDS: Final = 0.25
_LINES: Final = (("median", 50.0, "#1b7837"), ("p99", 99.0, "#2166ac"), ("slowest", 100.0, "#b2182b"))


@dataclass(frozen=True, slots=True)
class Course:
    """A stream of writes over a snapshot, from its request (`asked`) to its end; times as in `Writes`, nanoseconds."""

    name: str
    writes: Writes
    asked: int
    ended: int
    committed: bool

    def phases(self) -> dict[str, Nanoseconds]:
        """Latencies before, during and after the snapshot."""
        last = int(self.writes.acknowledged[-1]) + 1
        return {
            "before": self.writes.between(0, self.asked),
            "during": self.writes.between(self.asked, self.ended),
            "after": self.writes.between(self.ended, last),
        }

    def binned(self) -> tuple[list[float], dict[str, list[float]]]:
        """Seconds from the request on, and for each line milliseconds a quarter of a second."""
        seconds = (self.writes.acknowledged.astype(np.int64) - self.asked) / 1e9
        numbers = np.floor(seconds / _BIN_SECONDS).astype(int)
        edges = np.flatnonzero(np.diff(numbers)) + 1
        times = [float(numbers[start]) * _BIN_SECONDS for start in (0, *edges)]
        parts = np.split(self.writes.latency, edges)
        lines = {name: [float(np.percentile(part, share)) / 1e6 for part in parts] for name, share, _ in _LINES}
        return times, lines


def draw(courses: list[Course], path: Path) -> None:
    """Write one SVG with a panel a course, on common axes."""
    pyplot.rcParams.update({"svg.hashsalt": "stillframe", "svg.fonttype": "none", "font.size": 9})
    figure, panels = pyplot.subplots(len(courses), 1, figsize=(8, 2.1 * len(courses)), sharex=True, sharey=True)
    for course, panel in zip(courses, np.atleast_1d(panels), strict=True):
        times, lines = course.binned()
        panel.axvspan(0, (course.ended - course.asked) / 1e9, color="#fdf3d8", label="snapshot")
        for name, _, color in _LINES:
            panel.step(times, lines[name], where="post", color=color, linewidth=1.0, label=name)
        panel.set_yscale("log")
        panel.set_ylabel("ms")
        end = "until its commit" if course.committed else "until it was deleted"
        panel.set_title(f"{course.name}: snapshot {end}", loc="left", fontsize=9)
        panel.grid(axis="y", color="#dddddd", linewidth=0.5)
    np.atleast_1d(panels)[-1].set_xlabel("seconds from the request of the snapshot")
    np.atleast_1d(panels)[0].legend(loc="upper right", ncols=4, frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
