"""The supervisor's jobs: what each is doing, and the processes of the large ones. Any thread.

A process must be started by a thread that lives as long as the supervisor: it is told to die with that thread
(PR_SET_PDEATHSIG). `Spawner` is that thread's loop; the supervisor runs it in its main thread.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NoReturn

from driver.core import settings
from driver.core.errors import (
    Busy,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    StillframeError,
)
from driver.core.messages import close_all
from driver.host.log import say
from driver.host.spawn import popen_module
from driver.transfer import small, specs
from driver.transfer.begun import Begun
from driver.transfer.specs import DESCRIPTORS, OF_SESSIONS

_WAIT_SECONDS_MAX: Final = 10.0
_DEATHS_MAX: Final = 5
_DEATHS_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 0.05
_LOOK_UP_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 1.0
_SILENT_LOOKS: Final = 30
"""A process that has told nothing at so many looks in a row hangs, and is killed; it tells its progress five times a second,
once it has started. Looks are counted, not time: when the machine stands still, nobody can tell anything."""
_SPEC_BYTES_MAX: Final = 60_000


class Spawner:
    """Starts processes for other threads, from the thread that runs `run`."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._wanted = queue.SimpleQueue()

    def run(self) -> NoReturn:
        """For ever. Looks up now and then: a signal that the kernel gave to another thread does not wake this one."""
        while True:
            try:
                start, started = self._wanted.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                continue
            try:
                started.set_result(start())
            except OSError as error:
                started.set_exception(error)

    def start(self, module: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
        """The new process. Raises OSError."""
        started: Future[subprocess.Popen[bytes]] = Future()
        self._wanted.put((lambda: popen_module(module, arguments, keep), started))
        return started.result()


class Job:
    """One job; `changed` guards everything in it."""

    def __init__(self, kind: str, spec: dict[str, Any], fds: list[int]) -> None:
        self.kind = kind
        self.spec = spec
        self.fds = fds
        self.changed = threading.Condition()
        self.state = "running"
        self.progress: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self.error: dict[str, str] | None = None
        self.cancelled = False
        self.process: subprocess.Popen[bytes] | None = None

    def status(self, wait_seconds: float) -> dict[str, Any]:
        """State, progress, result, error; after the end, or at most `wait_seconds`."""
        deadline = time.monotonic() + min(wait_seconds, _WAIT_SECONDS_MAX)
        with self.changed:
            while self.state == "running" and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)
            result = self.result if self.state != "running" else {}
            return {"state": self.state, "progress": self.progress, "result": result, "error": self.error}

    def end(self, error: StillframeError | None, result: dict[str, Any]) -> None:
        with self.changed:
            self.state = "done" if error is None else "failed"
            self.result = result
            self.error = None if error is None else error.to_message()
            close_all(self.fds)
            self.fds = []
            self.changed.notify_all()

    def cancel(self) -> None:
        """End it; when this returns, its process is reaped."""
        with self.changed:
            self.cancelled = True
            if self.process is not None:
                self.process.kill()
            if self.kind in DESCRIPTORS:
                self.changed.wait_for(lambda: self.state != "running")


class Jobs:
    """All jobs that were started and not forgotten."""

    def __init__(self, state: Path, spawner: Spawner) -> None:
        self._state = state
        self._spawner = spawner
        self._stores = small.Stores()
        self._begun = Begun()
        self._table = threading.Lock()  # guards _jobs
        self._jobs: dict[str, Job] = {}

    def start(self, name: str, kind: str, spec: dict[str, Any], fds: list[int]) -> None:
        """Takes over `fds`. A finished job of that name is replaced. Raises Busy, InvalidArgument."""
        try:
            wanted = DESCRIPTORS.get(kind, 0)
            if kind not in DESCRIPTORS and kind not in small.KINDS:
                raise InvalidArgument(f"there is no kind of job {kind!r}")
            if len(fds) != wanted:
                raise InvalidArgument(f"a {kind} job takes {wanted} descriptors, not {len(fds)}")
            if len(json.dumps(spec)) > _SPEC_BYTES_MAX:
                raise InvalidArgument(f"a {kind} job's description is too long")
            job = Job(kind, spec, fds)
            with self._table:
                other = self._jobs.get(name)
                if other is not None and other.state == "running":
                    raise Busy(f"job {name!r} runs already")
                self._jobs[name] = job
        except StillframeError:
            close_all(fds)
            raise
        run = self._run_process if kind in DESCRIPTORS else self._run_small
        threading.Thread(target=self._outermost, args=[run, job], name=f"job-{name}", daemon=True).start()

    def get(self, name: str) -> Job:
        """Raises NotFound."""
        with self._table:
            job = self._jobs.get(name)
        if job is None:
            raise NotFound(f"there is no job {name!r}")
        return job

    def forget(self, name: str) -> None:
        """Drop a job, ended first if it runs. Raises NotFound."""
        self.get(name).cancel()
        with self._table:
            self._jobs.pop(name, None)

    def list(self) -> dict[str, dict[str, str]]:
        with self._table:
            return {name: {"kind": job.kind, "state": job.state} for name, job in self._jobs.items()}

    def kill(self) -> None:
        """Kill and reap every process; for the end of the supervisor."""
        with self._table:
            jobs = list(self._jobs.values())
        for job in jobs:
            with job.changed:
                job.cancelled = True
                process = job.process
            if process is not None:
                process.kill()
                process.wait()

    @staticmethod
    def _outermost(run: Callable[[Job], None], job: Job) -> None:
        try:
            run(job)
        except StillframeError as error:
            job.end(error, job.result)
        except Exception as error:  # the outermost loop of a job
            traceback.print_exc()
            job.end(Internal(f"{job.kind}: {error!r}", "the engine's log has the details"), job.result)

    def _run_small(self, job: Job) -> None:
        result = job.result
        small.run(self._stores, self._begun, self._state, job.kind, job.spec, result)
        job.end(None, result)

    # --- jobs with a process

    def _run_process(self, job: Job) -> None:
        deaths: deque[float] = deque(maxlen=_DEATHS_MAX)
        spec = self._with_what_was_seen(job.spec) if job.kind == "send" else job.spec
        while True:
            code, final = self._one_process(job, spec)
            spec = job.spec
            if job.cancelled:
                raise FailedPrecondition(f"the {job.kind} was cancelled")
            if "result" in final:
                job.end(None, final["result"])
                return
            if "error" in final:
                raise StillframeError.from_message(final["error"])
            if job.kind not in OF_SESSIONS or code >= 0:
                raise Internal(f"the {job.kind} process ended with {_ending(code)}", "the engine's log may say why")
            now = time.monotonic()
            if len(deaths) == _DEATHS_MAX and now - deaths[0] < _DEATHS_SECONDS:
                raise Internal(
                    f"the {job.kind} process died too often, now with {_ending(code)}", "the engine's log may say why"
                )
            deaths.append(now)
            say("transfer", f"a {job.kind} process ended with {_ending(code)}; starting it again")
            time.sleep(_AGAIN_SECONDS)

    def _with_what_was_seen(self, spec: dict[str, Any]) -> dict[str, Any]:
        """For a session's first sender. Raises InvalidArgument, NotFound."""
        wanted = specs.parse(spec, specs.Send)
        seen = self._begun.take(wanted, settings.repository(self._state, wanted.repository))
        return spec if seen is None else {**spec, "seen": {"parent": seen.parent}}

    def _one_process(self, job: Job, spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Run a process to its end: its exit code (negative: a signal) and its last word, if it had one."""
        told_read, told_write = os.pipe2(os.O_CLOEXEC)
        described = os.memfd_create("stillframe-job", os.MFD_CLOEXEC)
        try:
            with open(described, "w", closefd=False) as file:
                json.dump(spec, file)
            os.lseek(described, 0, os.SEEK_SET)
            arguments = [str(self._state), job.kind, str(described), str(told_write), *map(str, job.fds)]
            process = self._spawner.start("driver.transfer.job", arguments, [described, told_write, *job.fds])
        except OSError as error:
            os.close(told_read)
            raise Internal(f"cannot start a {job.kind} process: {error}") from error
        finally:
            close_all([described, told_write])
        with job.changed:
            job.process = process
            if job.cancelled:
                process.kill()
        try:
            final = _listen(job, process, told_read)
        finally:
            os.close(told_read)
        code = process.wait()
        with job.changed:
            job.process = None
        return code, final


def _listen(job: Job, process: subprocess.Popen[bytes], told: int) -> dict[str, Any]:
    """Follow the progress until the process closes the pipe; its last word. One that falls silent is killed."""
    final: dict[str, Any] = {}
    for line in _lines(told, lambda: _kill_silent(job, process)):
        try:
            message = json.loads(line)
        except ValueError:
            continue  # cut short by its death
        if "progress" in message:
            with job.changed:
                job.progress = message["progress"]
        else:
            final = message
    return final


def _lines(pipe: int, on_silence: Callable[[], None]) -> Iterator[bytes]:
    """The lines that come out of a pipe until it is closed; `on_silence` whenever nothing came for a while."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    rest, looks = b"", 0
    while True:
        if not poll.poll(_LOOK_SECONDS * 1000):
            looks += 1
            if looks % _SILENT_LOOKS == 0:
                on_silence()
            continue
        looks = 0
        data = os.read(pipe, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _kill_silent(job: Job, process: subprocess.Popen[bytes]) -> None:
    seconds = _SILENT_LOOKS * _LOOK_SECONDS
    say("transfer", f"a {job.kind} process ({process.pid}) has been silent for {seconds:.0f} s; killing it")
    process.kill()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
