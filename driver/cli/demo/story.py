"""The demo's story: what happens on the stage, in order, with its figures."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from driver.cli.demo import checks
from driver.cli.demo.stage import Stage
from driver.cli.demo.writer import Transaction, read_log
from driver.cli.output import Output
from driver.core.errors import NotFound, SnapshotFailed, StillframeError
from driver.core.sizes import format_size
from driver.host.run import run

_TREES: Final = ("/usr/lib/python3", "/usr/share/doc", "/usr/share/perl", "/etc")
_PHASE_SECONDS: Final = 3.0


def tell(stage: Stage, size_bytes: int, output: Output) -> dict[str, Any]:
    """Play it all; the figures. Raises DataCorrupt if a check fails, and whatever else goes wrong."""
    client = stage.client
    tree = next((Path(name) for name in _TREES if Path(name).is_dir()), None)
    if tree is None:
        raise NotFound(f"none of {', '.join(_TREES)} is there to be copied")
    device = stage.volume("original", lambda: _ignore(client.call("volume.create", name="original", size_bytes=size_bytes)))
    run(["mkfs.ext4", "-q", device])
    output.line(f"A volume of {format_size(size_bytes)} with ext4, repository {stage.url}.")
    with stage.mounted(device) as folder:
        run(["cp", "-a", str(tree), str(folder / "tree")])
        os.sync()
        expected = checks.digests(folder / "tree")
        output.line(f"{len(expected)} files of {tree} copied to it, digests taken.")
        log = stage.folder / "transactions.log"
        command = [sys.executable, "-m", "driver.cli.demo.writer", str(folder / "database"), str(log)]
        with stage.background(command, stage.folder / "writer.log"):
            time.sleep(_PHASE_SECONDS)
            cut_began = time.time_ns()
            snapshot = client.call("snapshot.create", volume="original", name="demo")
            cut_ended = time.time_ns()
            output.line("SQLite commits to it in WAL mode; snapshot taken, and uploading while files are overwritten.")
            _overwrite(folder / "tree")
            snapshot = _wait(stage, snapshot, output)
            uploaded = time.time_ns()
            time.sleep(_PHASE_SECONDS)
            second_began = time.time_ns()
            second = _wait(stage, client.call("snapshot.create", volume="original", name="demo-2"), output)
    figures = _latencies([t for t in read_log(log) if t.begun < second_began], cut_began, uploaded)
    _tell_figures(output, snapshot, figures, (uploaded - cut_ended) / 1e9)
    output.line(
        f"A second snapshot, of the same volume, read the {format_size(second['session']['swept_bytes'])} that had been "
        f"written since, and uploaded {format_size(second['uploaded_bytes'])} in {second['requests']} requests."
    )

    started = time.monotonic()
    restored = stage.volume("restored", lambda: _restore(stage, output))
    seconds = time.monotonic() - started
    with stage.mounted(restored) as folder:
        files = checks.check_files(folder / "tree", expected)
        rows = checks.check_database(folder / "database", read_log(log), cut_began, cut_ended)
    checks.check_file_system(restored)
    transactions = read_log(log)
    output.line(
        f"Restored in {seconds:.1f} s and checked: e2fsck finds nothing, {files} files have their digests, "
        f"PRAGMA integrity_check is ok, all {rows} transactions of the cut are there and none of the "
        f"{len(transactions) - rows} later ones."
    )
    return {"snapshot": snapshot, "second": second, "latency_seconds": figures, "restore_seconds": seconds, "files": files,
            "transactions_at_cut": rows, "transactions": len(transactions)}  # fmt: skip


def _ignore(result: object) -> None:
    """A call whose result the story does not need."""


def _overwrite(tree: Path) -> None:
    """Rewrite a part of the files and remove another, so that the snapshot must keep what they held."""
    for index, path in enumerate(sorted(tree.rglob("*"))):
        if path.is_file() and not path.is_symlink():
            if index % 4 == 0:
                path.write_bytes(os.urandom(path.stat().st_size))
            elif index % 4 == 1:
                path.unlink()
    os.sync()


def _wait(stage: Stage, snapshot: dict[str, Any], output: Output) -> dict[str, Any]:
    with output.progress("uploading") as meter:
        snapshot = stage.client.follow_snapshot(snapshot, meter)
    if snapshot["state"] != "committed":
        error = StillframeError.from_message(snapshot["error"] or {})
        raise SnapshotFailed(f"the snapshot is {snapshot['state']}: {error.message}", error.hint)
    return snapshot


def _restore(stage: Stage, output: Output) -> None:
    job = stage.client.call("snapshot.restore", snapshot="demo", volume="restored")["job"]
    with output.progress("restoring") as meter:
        stage.client.follow_job(job, lambda p: meter(p.get("bytes_done", 0), p.get("bytes_total", 0)))


def _latencies(log: list[Transaction], cut_began: int, uploaded: int) -> dict[str, dict[str, float]]:
    """Seconds a commit took, at the median and at the 99th percentile, before, during and after the upload."""
    phases = {
        "before": [t for t in log if t.done < cut_began],
        "during": [t for t in log if t.done >= cut_began and t.begun <= uploaded],
        "after": [t for t in log if t.begun > uploaded],
    }
    figures = {}
    for phase, transactions in phases.items():
        with contextlib.suppress(IndexError):
            times = sorted(t.done - t.begun for t in transactions)
            figures[phase] = {"p50": times[len(times) // 2] / 1e9, "p99": times[len(times) * 99 // 100] / 1e9}
    return figures


def _tell_figures(
    output: Output, snapshot: dict[str, Any], figures: dict[str, dict[str, float]], seconds: float
) -> None:
    session = snapshot["session"]
    output.line(
        f"Uploaded in {seconds:.1f} s: {format_size(snapshot['uploaded_bytes'])} in {snapshot['requests']} requests, "
        f"of {format_size(snapshot['stored_bytes'])} that were not zero."
    )
    output.line(
        f"The cut took {session['cut_seconds'] * 1000:.1f} ms; {session['preimages']} pre-images "
        f"({format_size(session['preimage_bytes'])}) were captured; the buffer peaked at "
        f"{format_size(session['buffer_peak_bytes'])}."
    )
    told = ", ".join(
        f"{phase} p50 {times['p50'] * 1000:.2f} ms p99 {times['p99'] * 1000:.2f} ms" for phase, times in figures.items()
    )
    output.line(f"What a commit took: {told}.")
