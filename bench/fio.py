"""fio: one job on one device, its IOPS, bandwidth and latency percentiles."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any, Final

from bench.programs import ProgramFailed, finish, kill, run, start

_SLACK_SECONDS: Final = 120.0
FILL: Final = "fio --name=fill --rw=write --bs=1M --iodepth=8 --ioengine=libaio --direct=1 --end_fsync=1 --refill_buffers=1"


@dataclass(frozen=True, slots=True)
class Job:
    """`seconds` bounds it; with `once`, it ends when each block was written once (a random map sees to that)."""

    rw: str
    depth: int
    seconds: int
    block_bytes: int = 4096
    fdatasync: bool = False
    rate_iops: int = 0
    offset_bytes: int = 0
    size_bytes: int = 0
    once: bool = False

    def arguments(self, device: str) -> list[str]:
        given = [
            "fio", "--name=bench", f"--filename={device}", "--ioengine=libaio", "--direct=1", f"--rw={self.rw}",
            f"--bs={self.block_bytes}", f"--iodepth={self.depth}", f"--runtime={self.seconds}", "--randrepeat=0",
            "--output-format=json", "--percentile_list=50:99:99.9",
        ]  # fmt: skip
        if self.fdatasync:
            given.append("--fdatasync=1")
        if self.rate_iops:
            given.append(f"--rate_iops={self.rate_iops}")
        if self.size_bytes:
            given += [f"--offset={self.offset_bytes}", f"--size={self.size_bytes}"]
        return given if self.once else [*given, "--time_based", "--norandommap"]


@dataclass(frozen=True, slots=True)
class Result:
    """Latencies in microseconds, from submission to completion."""

    iops: float
    bytes_per_second: float
    operations: int
    seconds: float
    p50: float
    p99: float
    p999: float
    longest: float


class Running:
    """A job that runs beside us. `result` waits for its end."""

    def __init__(self, device: str, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[str] = start(job.arguments(device))

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> Result:
        """Raises ProgramFailed if fio or an I/O of it failed."""
        return parse(finish(self._process, self._job.seconds + _SLACK_SECONDS))

    def stop(self) -> None:
        """Kill it, if it still runs."""
        kill(self._process)


def measure(device: str, job: Job) -> Result:
    """Run a job to its end. Raises ProgramFailed."""
    return Running(device, job).result()


def fill(path: str, size_bytes: int, offset_bytes: int = 0) -> None:
    """Write a file or device once, or a part of it, with bytes that do not compress."""
    run([*FILL.split(), f"--filename={path}", f"--offset={offset_bytes}", f"--size={size_bytes}"], timeout_seconds=600)


def parse(output: str) -> Result:
    """What fio's JSON says of its only job. Raises ProgramFailed."""
    start_at = output.find("{")
    try:
        job: dict[str, Any] = json.loads(output[start_at:])["jobs"][0]
    except (ValueError, LookupError) as error:
        raise ProgramFailed(f"fio wrote no result: {output[:500]}") from error
    if job["error"]:
        raise ProgramFailed(f"fio: I/O error {job['error']}: {output[:500]}")
    side = job["write"] if job["write"]["total_ios"] else job["read"]
    latency = side["clat_ns"]
    percentiles = latency.get("percentile", {})
    return Result(
        iops=side["iops"],
        bytes_per_second=side["bw_bytes"],
        operations=side["total_ios"],
        seconds=side["runtime"] / 1000,
        p50=percentiles.get("50.000000", 0) / 1000,
        p99=percentiles.get("99.000000", 0) / 1000,
        p999=percentiles.get("99.900000", 0) / 1000,
        longest=latency["max"] / 1000,
    )
