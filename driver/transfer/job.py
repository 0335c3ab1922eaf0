"""`python -m driver.transfer.job STATE KIND SPEC PROGRESS FD…`: one large job, a process of its own.

The numbers are descriptors: SPEC gives the job as JSON, PROGRESS takes JSON lines ({"progress": {...}} now and then, at
the end {"result": {...}} or {"error": {...}}), the rest is what the kind needs (send: pack buffers, spool; clone: pack
buffers, the new backing file; restore: the backing file). Started by the transfer supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from driver.core import settings
from driver.core.errors import Internal, StillframeError
from driver.core.sizes import CHUNK_BYTES, chunks_of
from driver.host import kernel
from driver.host.locks import RecordLocks
from driver.store.open import honours_conditions, open_store
from driver.store.port import Options
from driver.store.retry import FOR_EVER, LASTING, PATIENT, Retrying, Watch
from driver.transfer import audit, catalog, clone, collect, send, specs
from driver.transfer.packbuffer import SENDER_LOCK_BYTE, Header, PackBuffers
from driver.transfer.parent import Parent
from driver.transfer.rate import Rate
from driver.transfer.restore import WORKERS, BackingFile, Nowhere, Reader, Target
from driver.transfer.spool import Spool

_REPORT_SECONDS: Final = 0.2
Spec = dict[str, Any]
Result = dict[str, Any]


class Report:
    """What the supervisor hears of the job. Any thread."""

    def __init__(self, fd: int) -> None:
        self._file = open(fd, "w", buffering=1)  # noqa: SIM115 (open until the process ends)
        self._writing = threading.Lock()  # guards _file

    def line(self, **message: Any) -> None:
        with self._writing:
            self._file.write(json.dumps(message, separators=(",", ":")) + "\n")

    def keep_on(self, progress: Callable[[], dict[str, int]]) -> None:
        """Tell the progress from now on, from a thread of its own."""

        def tell() -> None:
            pause = threading.Event()
            while True:
                self.line(progress=progress())
                pause.wait(_REPORT_SECONDS)

        threading.Thread(target=tell, name="report", daemon=True).start()


def run_send(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """Upload a session; the committed snapshot's summary, and `again` of `driver.transfer.send`."""
    packs_fd, spool_fd = fds
    spec = specs.parse(given, specs.Send)
    session = send.session_of(spec)
    RecordLocks(packs_fd).acquire(SENDER_LOCK_BYTE)
    packs = PackBuffers(packs_fd)
    meter = send.Meter(packs)
    pace = Rate(spec.upload_rate_bytes).wait if spec.upload_rate_bytes else None
    repository = settings.repository(state, spec.repository)
    options = Options(connections=send.WORKERS + 1, pace=pace)
    store = open_store(repository, FOR_EVER, options, Watch(meter.request, meter.retry))

    total = spec.pending_chunks * CHUNK_BYTES
    report.keep_on(lambda: _progress(_chunks_done(packs) * CHUNK_BYTES, total, packs.get(Header.REQUESTS)))
    spool = Spool(spool_fd, chunks_of(session.size_bytes))
    if spec.seen is None:
        catalog.check_same(store, spec.repository_id)
    parent = None
    if spec.parent is not None:
        seen = spec.seen.parent if spec.seen is not None else None
        parent = Parent(store, catalog.parent(store, spec.parent, spec.lineage, seen), spool)
    conditions = honours_conditions(repository, store) if spec.conditional_put is None else spec.conditional_put
    sender = send.Sender(
        store, session, packs, spool, meter, conditions=conditions, parent=parent,
        statistics=lambda: _statistics(spec.statistics_path),
    )  # fmt: skip
    return {**catalog.summary_of_manifest(sender.run(), spec.repository), "again": sender.again}


def _statistics(path: str | None) -> dict[str, Any] | None:
    """The session's figures, if somebody wrote them."""
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def run_clone(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """Copy a session into another volume's backing file. See `driver.transfer.clone`."""
    packs_fd, backing = fds
    spec = specs.parse(given, specs.Clone)
    RecordLocks(packs_fd).acquire(SENDER_LOCK_BYTE)
    packs = PackBuffers(packs_fd)
    for word in (Header.STORED_CHUNKS, Header.ZERO_CHUNKS, Header.SAME_CHUNKS, Header.STORED_BYTES):
        packs.set(word, 0)
    report.keep_on(lambda: _progress(_chunks_done(packs) * CHUNK_BYTES, spec.size_bytes, 0))
    clone.copy(packs, backing)
    return {"bytes_written": packs.get(Header.STORED_BYTES)}


def _chunks_done(packs: PackBuffers) -> int:
    return packs.get(Header.STORED_CHUNKS) + packs.get(Header.ZERO_CHUNKS) + packs.get(Header.SAME_CHUNKS)


def run_restore(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """Fill a backing file with a snapshot, durably."""
    (backing,) = fds
    reader, size_bytes = _read(
        state, specs.parse(given, specs.OfSnapshot), lambda size_bytes: BackingFile(backing, size_bytes), report
    )
    return {"bytes_written": size_bytes, "chunks": reader.chunks, "bytes_read": reader.bytes_read}


def run_verify(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """Read and check every chunk of a snapshot."""
    reader, _ = _read(state, specs.parse(given, specs.OfSnapshot), lambda size_bytes: Nowhere(), report)
    return {"chunks": reader.chunks, "bytes": reader.bytes_read}


def _read(
    state: Path, spec: specs.OfSnapshot, target: Callable[[int], Target], report: Report
) -> tuple[Reader, int]:
    requests = Tally()
    done = Tally()
    repository = settings.repository(state, spec.repository)
    watch = Watch(lambda: requests.add(1), lambda: None)
    store = open_store(repository, LASTING, Options(connections=WORKERS + 1), watch)
    manifest = catalog.committed(store, spec.snapshot)

    def progress() -> dict[str, int]:
        return _progress(done.value, manifest.size_bytes, requests.value)

    report.keep_on(progress)
    reader = Reader(store, manifest, target(manifest.size_bytes), done.add)
    reader.run()
    report.line(progress=progress())
    return reader, manifest.size_bytes


def run_gc(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """Remove what no snapshot of a repository needs. See `driver.transfer.collect`."""
    spec = specs.parse(given, specs.Collect)
    repository = settings.repository(state, spec.repository)
    store, tell = _whole(repository, report)
    conditions = honours_conditions(repository, store)
    ways = collect.Ways(node=spec.node, progress=tell)
    return collect.collect(store, conditions=conditions, dry_run=spec.dry_run, ways=ways)


def run_audit(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """Whether every object that a snapshot of a repository needs is there."""
    spec = specs.parse(given, specs.Collect)
    store, tell = _whole(settings.repository(state, spec.repository), report)
    return audit.check(store, collect.Ways(node=spec.node, progress=tell))


def run_stats(state: Path, given: Spec, fds: Sequence[int], report: Report) -> Result:
    """How much a repository holds."""
    store, _ = _whole(settings.repository(state, specs.parse(given, specs.OfRepository).repository), report)
    return audit.stats(store)


def _whole(repository: settings.Repository, report: Report) -> tuple[Retrying, Callable[[int, int], None]]:
    """A repository's store, and where a job tells how many of how many objects it has done."""
    requests, done, total = Tally(), Tally(), Tally()
    watch = Watch(lambda: requests.add(1), lambda: None)
    store = open_store(repository, PATIENT, Options(connections=collect.READERS), watch)

    def tell(count: int, of: int) -> None:
        done.value, total.value = count, of

    report.keep_on(lambda: {"done": done.value, "total": total.value, "requests": requests.value})
    return store, tell


class Tally:
    """A sum. Any thread."""

    def __init__(self) -> None:
        self._adding = threading.Lock()  # guards value
        self.value = 0

    def add(self, count: int) -> None:
        with self._adding:
            self.value += count


def _progress(done: int, total: int, requests: int) -> dict[str, int]:
    return {"bytes_done": done, "bytes_total": total, "requests": requests}


JOBS: Final[dict[str, Callable[[Path, Spec, Sequence[int], Report], Result]]] = {
    "send": run_send,
    "clone": run_clone,
    "restore": run_restore,
    "verify": run_verify,
    "gc": run_gc,
    "audit": run_audit,
    "stats": run_stats,
}


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the job to its end. Exits with 0 whatever the outcome, which PROGRESS was told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel.set_process_name(f"sf-{arguments[1]}")
    kernel.one_malloc_arena()
    report = Report(int(arguments[3]))
    try:
        with open(int(arguments[2])) as file:
            spec = json.load(file)
        report.line(result=JOBS[arguments[1]](Path(arguments[0]), spec, [int(fd) for fd in arguments[4:]], report))
    except StillframeError as error:
        report.line(error=error.to_message())
    except BaseException as error:  # the outermost frame of a process
        traceback.print_exc()
        report.line(error=Internal(f"{arguments[1]}: {error!r}", "the engine's log has the details").to_message())
    sys.stderr.flush()
    os._exit(0)  # threads may still wait for a store


if __name__ == "__main__":
    main(sys.argv[1:])
