"""Runs other programs: to their end, or for as long as a context lasts. The only module here that starts processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

PACKAGES: Final = {
    "borg": "borgbackup",
    "restic": "restic",
    "fio": "fio",
    "gcc": "gcc libc6-dev",
    "losetup": "mount",
    "setpriv": "util-linux",
    "umount": "mount",
    "qemu-storage-daemon": "qemu-system-common",
}
"""Debian's package for each program that the benchmarks call."""
_STOP_SECONDS: Final = 20.0


_ROOT: Final = Path(__file__).resolve().parent.parent


class ProgramFailed(Exception):
    """A program ended with an error, took too long, or is not there; the message holds what it wrote."""


def missing() -> list[str]:
    """Debian packages of the programs that are not installed."""
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})


def run(arguments: Sequence[str], timeout_seconds: float = 60.0, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end; its standard output. Raises ProgramFailed."""
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=timeout_seconds, env=environment,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramFailed(f"{' '.join(arguments)}: {error}") from error
    if done.returncode != 0:
        raise ProgramFailed(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start a program whose end and output `finish` waits for. It gets no terminal signals of ours."""
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_seconds: float) -> str:
    """Wait for a program that `start` started; its output. Raises ProgramFailed; the process is gone in any case."""
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{process.args!r} took more than {timeout_seconds:.0f} s") from error
    finally:
        kill(process)
    if process.returncode != 0:
        raise ProgramFailed(f"{process.args!r}: exit code {process.returncode}\n{output}")
    return output


def kill(process: subprocess.Popen[str]) -> None:
    """End a program that `start` started, if it still runs, and the jobs that it has forked (fio ends them itself)."""
    if process.poll() is not None:
        return
    jobs = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.terminate()
    try:
        process.communicate(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in [*jobs, process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def daemon(arguments: Sequence[str], log: Path, *, stop_seconds: float = _STOP_SECONDS) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs while the context lasts, its output in `log`: then SIGTERM, and SIGKILL if it must be.

    It gets the SIGTERM too when this process dies. To be called from the main thread.
    """
    command = ["setpriv", "--pdeathsig", "TERM", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=_ROOT, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(stop_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(what: str, holds: Callable[[], bool], process: subprocess.Popen[bytes] | None, log: Path) -> None:
    """Poll `holds` for 20 s. Raises ProgramFailed, with the end of the log, after that or when the process ends."""
    deadline = time.monotonic() + _STOP_SECONDS
    while not holds():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise ProgramFailed(f"{what} did not come about\n{tail}")
        time.sleep(0.01)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line of one of our own modules, for this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def compiled(source: Path, build: Path) -> Path:
    """The program of one C file, made anew if the file is newer. Raises ProgramFailed."""
    program = build / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        build.mkdir(parents=True, exist_ok=True)
        run(["gcc", "-O2", "-pthread", "-w", "-o", str(program), str(source)])
    return program
