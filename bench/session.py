"""While a session uploads at 100 MB/s: a load at half the capacity, and a saturated one on sealed, captured and
untouched chunks; the last beside QEMU's copy-before-write.

Each load is measured without a session just before, on the same part of the same volume, written anew: what a session
uploads is what no earlier load has made compressible.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from bench import fio
from bench.engine import Engine, Snapshot, engine, snapshot, volume
from bench.plan import KIB, MIB, RECEIVED_BYTES_PER_SECOND, UPLOAD_BYTES_PER_SECOND, UPLOAD_RATE, Plan
from bench.prober import Prober, Writes
from bench.programs import ProgramFailed
from bench.report import AT_LEAST, AT_MOST, Results
from bench.servers import Received, Store, store
from bench.subjects import CACHED_DAEMON, DAEMON, OURS, storage_daemon, written_file

VOLUME: Final = "bench"
RATE_KEPT: Final = 0.99
P99_BESIDE: Final = 3.0
SETTLED: Final = 0.85
FIRST_TOUCH: Final = 0.60
OF_QEMU_IOPS: Final = 5.0
OF_QEMU_P99: Final = 0.1
_CHUNK_BYTES: Final = 64 * KIB
_CAPTURED_BYTES: Final = 128 * MIB
"""Working set of the row on captured chunks: its pre-images stay within a session's memory."""
_SCATTERED_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Bed:
    """An engine with one volume and a store, in one round."""

    plan: Plan
    results: Results
    running: Engine
    server: Store
    device: str

    def saturated(self, offset_bytes: int, size_bytes: int) -> fio.Job:
        return fio.Job("randwrite", 16, self.plan.seconds, offset_bytes=offset_bytes, size_bytes=size_bytes)

    def without(self, job: fio.Job) -> fio.Result:
        """Run a job without a session; then its part of the volume is written anew."""
        result = fio.measure(self.device, job)
        fio.fill(self.device, job.size_bytes, job.offset_bytes)
        return result

    def during(self, taken: Snapshot, job: fio.Job) -> tuple[fio.Result, bool]:
        """Run a job beside a session; whether it counts: the session outlasts it, and the server got its bytes."""
        with Received(self.server.gate) as received:
            result = fio.measure(self.device, job)
        slowest = received.slowest()
        self.results.case("session: server received, slowest 5 s", OURS, slowest / 1e6, "MB/s")
        return result, taken.runs and slowest >= RECEIVED_BYTES_PER_SECOND


def measure(plan: Plan, results: Results) -> None:
    """All rounds."""
    for _ in range(plan.rounds):
        with (
            store(plan, plan.store) as server,
            engine(plan, server, "--upload-rate", UPLOAD_RATE) as running,
            volume(running, VOLUME, plan.session_bytes) as device,
        ):
            bed = Bed(plan, results, running, server, device)
            _fixed_rate(bed)
            _sealed(bed)
            _captured(bed)
            _first_touch(bed, "first touch")
            scattered = _scattered(bed)
        with (
            store(plan, plan.store) as server,
            engine(plan, server, "--upload-rate", UPLOAD_RATE, "--session-memory", "1Gi") as running,
            volume(running, VOLUME, plan.session_bytes) as device,
        ):
            _first_touch(Bed(plan, results, running, server, device), "first touch, 1 GiB of session memory")
        _beside_qemu(plan, results, scattered)


def _fixed_rate(bed: Bed) -> None:
    """Half the capacity, for nine tenths of a session."""
    at = bed.plan.working_set_bytes
    capacity = bed.without(bed.saturated(at, at)).iops
    asked = int(capacity / 2)

    def at_rate(seconds: int) -> fio.Job:
        return fio.Job("randwrite", 16, seconds, rate_iops=asked, offset_bytes=at, size_bytes=at)

    quiet = bed.without(at_rate(bed.plan.seconds))
    with snapshot(bed.running, VOLUME) as taken:
        seconds = max(1, int(0.9 * bed.plan.session_bytes / UPLOAD_BYTES_PER_SECOND))
        beside, counts = bed.during(taken, at_rate(seconds))
    results = bed.results
    results.case("session: capacity, write qd16", OURS, capacity, "IOPS")
    for name, result in {"without a session": quiet, "in a session": beside}.items():
        results.case(f"session: half the capacity, {name}", OURS, result.iops, "IOPS")
        results.case(f"session: half the capacity, {name}, p99", OURS, result.p99, "µs")
        results.case(f"session: half the capacity, {name}, p99.9", OURS, result.p999, "µs")
    results.ratio("session at half the capacity: rate kept", beside.iops / asked, AT_LEAST, RATE_KEPT, counts=counts)
    results.ratio("session at half the capacity: p99", beside.p99 / quiet.p99, AT_MOST, P99_BESIDE, counts=counts)


def _settled(bed: Bed, name: str, quiet: fio.Result, beside: fio.Result, counts: bool) -> None:
    bed.results.case(f"session: saturated on {name} chunks", OURS, beside.iops, "IOPS")
    bed.results.case(f"session: saturated on {name} chunks, p99", OURS, beside.p99, "µs")
    ratio = beside.iops / quiet.iops
    bed.results.ratio(f"session, saturated on {name} chunks", ratio, AT_LEAST, SETTLED, counts=counts)


def _sealed(bed: Bed) -> None:
    """The volume's first part, after the sweep has passed it and goes on behind it."""
    size_bytes = bed.plan.working_set_bytes
    job = bed.saturated(0, size_bytes)
    quiet = bed.without(job)
    with snapshot(bed.running, VOLUME) as taken:
        deadline = time.monotonic() + 4 * size_bytes / UPLOAD_BYTES_PER_SECOND + 10
        while taken.sealed_chunks() < size_bytes // _CHUNK_BYTES:
            if time.monotonic() > deadline:
                raise ProgramFailed(f"the sweep has not passed {size_bytes} bytes: {taken.description}")
            time.sleep(0.1)
        beside, counts = bed.during(taken, job)
    _settled(bed, "sealed", quiet, beside, counts)


def _captured(bed: Bed) -> None:
    """A small part at the volume's end, overwritten once in full right after the cut."""
    size_bytes = bed.plan.scaled(_CAPTURED_BYTES)
    offset_bytes = bed.plan.session_bytes - size_bytes
    job = bed.saturated(offset_bytes, size_bytes)
    quiet = bed.without(job)
    with snapshot(bed.running, VOLUME) as taken:
        fio.fill(bed.device, size_bytes, offset_bytes)
        beside, counts = bed.during(taken, job)
    _settled(bed, "captured", quiet, beside, counts)


def _wait_for_upload(bed: Bed) -> None:
    """Until the sender has begun: the sweep is in the first part then."""
    deadline = time.monotonic() + 10
    before = bed.server.gate.count
    while bed.server.gate.count - before < MIB:
        if time.monotonic() > deadline:
            raise ProgramFailed("the upload has not begun 10 s after the cut")
        time.sleep(0.01)


def _first_touch(bed: Bed, name: str) -> None:
    """Each block of the middle part once, as soon as the upload flows."""
    size_bytes = bed.plan.working_set_bytes
    quiet = bed.without(bed.saturated(size_bytes, size_bytes))
    job = fio.Job("randwrite", 16, bed.plan.seconds, offset_bytes=size_bytes, size_bytes=size_bytes, once=True)
    with snapshot(bed.running, VOLUME) as taken:
        _wait_for_upload(bed)
        beside, counts = bed.during(taken, job)
        preimages = taken.look()["session"]["preimages"]
    results = bed.results
    results.case(f"session: saturated, {name}", OURS, beside.iops, "IOPS")
    results.case(f"session: saturated, {name}, p99", OURS, beside.p99, "µs")
    results.case(f"session: saturated, {name}, writes that captured", OURS, preimages / beside.operations, "share")
    results.ratio(f"session, saturated, {name}", beside.iops / quiet.iops, AT_LEAST, FIRST_TOUCH, counts=counts)


def _scattered(bed: Bed) -> Writes:
    """One block of each 64 KiB of the middle part, once: every write is the first to its chunk."""
    size_bytes = bed.plan.working_set_bytes
    fio.fill(bed.device, size_bytes, size_bytes)
    with snapshot(bed.running, VOLUME):
        _wait_for_upload(bed)
        return _write_scattered(bed.plan, bed.device, size_bytes)


def _write_scattered(plan: Plan, device: str, offset_bytes: int) -> Writes:
    prober = Prober(plan, device, plan.working_set_bytes, _SCATTERED_SECONDS, offset=offset_bytes, stride=_CHUNK_BYTES)
    try:
        return prober.writes()
    finally:
        prober.stop()


def _beside_qemu(plan: Plan, results: Results, ours: Writes) -> None:
    """The same writes on QEMU's copy-before-write into a preallocated fleecing image, which nobody reads from.

    With direct I/O, as our own volumes have it, and as it comes, through the page cache.
    """
    _record_scattered(results, OURS, ours)
    size_bytes = plan.working_set_bytes
    for subject in (DAEMON, CACHED_DAEMON):
        with (
            written_file(plan, "qemu-disk", size_bytes) as disk,
            written_file(plan, "qemu-fleece", size_bytes) as fleece,
            storage_daemon(disk, plan, fleece, direct=subject == DAEMON) as device,
        ):
            theirs = _write_scattered(plan, device, 0)
        _record_scattered(results, subject, theirs)
        name = f"copy-before-write of {subject}"
        results.ratio(f"first touch: IOPS of {name}", ours.iops / theirs.iops, AT_LEAST, OF_QEMU_IOPS)
        p99 = ours.percentile(99) / theirs.percentile(99)
        results.ratio(f"first touch: p99 of {name}", p99, AT_MOST, OF_QEMU_P99)


def _record_scattered(results: Results, subject: str, writes: Writes) -> None:
    name = "session: first write to each 64 KiB, qd16"
    results.case(name, subject, writes.iops, "IOPS")
    results.case(f"{name}, p99", subject, writes.percentile(99), "µs")
    results.case(f"{name}, p99.9", subject, writes.percentile(99.9), "µs")
