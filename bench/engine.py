"""Our own engine as a user would run it, and its volumes and snapshots, over its socket."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import fio
from bench.plan import Plan
from bench.programs import ProgramFailed, daemon, python_module, wait_until
from bench.servers import Store
from driver.core import messages
from driver.core.errors import StillframeError

REPOSITORY: Final = "bench"
_CALL_SECONDS: Final = 60.0
_END_SECONDS: Final = 600.0
_DETACH_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine. Calls raise StillframeError."""

    state: Path
    log: Path

    def call(self, call: str, /, **arguments: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CALL_SECONDS)
            connection.connect(str(self.state / "run" / "engine.sock"))
            answer, _ = messages.call(connection, {"call": call, "args": arguments})
        result: dict[str, Any] = answer["result"]
        return result

    def use(self, store: Store, *, direct: bool = False) -> None:
        """Make a store the only repository, from the next request on; with `direct`, around its gate."""
        credentials = self.state / "credentials"
        credentials.write_text(store.credentials())
        text = store.repository(REPOSITORY, credentials)
        (self.state / "repositories.toml").write_text(text.replace(store.endpoint, store.direct) if direct else text)

    def answers(self) -> bool:
        try:
            self.call("engine.info")
        except (OSError, StillframeError):
            return False
        return True


@dataclass(slots=True)
class Snapshot:
    """A snapshot in the making. Raises StillframeError, or ProgramFailed where it failed."""

    engine: Engine
    name: str
    description: dict[str, Any] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        self.description = self.engine.call("snapshot.show", snapshot=self.name, repository=REPOSITORY)
        return self.description

    @property
    def runs(self) -> bool:
        return str(self.look()["state"]) == "uploading"

    def sealed_chunks(self) -> int:
        """Chunks from the volume's first on that the sweep has sealed; all of them once it has ended."""
        progress = self.look()["progress"]
        return int(progress["chunks_sealed"]) if progress else 1 << 40

    def wait(self, seconds: float = _END_SECONDS) -> dict[str, Any]:
        """Until it is committed."""
        deadline = time.monotonic() + seconds
        while self.runs:
            if time.monotonic() > deadline:
                raise ProgramFailed(f"no commit of {self.name} within {seconds:.0f} s: {self.description}")
            time.sleep(0.02)
        if self.description["state"] != "committed":
            raise ProgramFailed(f"snapshot {self.name} is {self.description['state']}: {self.description['error']}")
        return self.description

    def delete(self) -> None:
        self.engine.call("snapshot.delete", snapshot=self.name, repository=REPOSITORY)


@contextlib.contextmanager
def engine(plan: Plan, store: Store | None = None, *options: str) -> Iterator[Engine]:
    """An engine on a state folder of its own, with `options` of its command line; stopped at the end."""
    state = plan.folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    running = Engine(state, plan.folder / "engine.log")
    if store is not None:
        running.use(store)
    command = python_module("driver.engine", "--state", str(state), *options)
    with daemon(command, running.log, stop_seconds=60) as process:
        wait_until("an answer of the engine", running.answers, process, running.log)
        transfer = state / "run" / "transfer.sock"
        wait_until("the transfer supervisor", transfer.exists, process, running.log)
        try:
            yield running
        finally:
            with contextlib.suppress(OSError, StillframeError):
                running.call("engine.stop", grace_seconds=10)
                process.wait(60)


@contextlib.contextmanager
def volume(running: Engine, name: str, size_bytes: int, provisioning: str = "thick", *, fill: bool = True) -> Iterator[str]:
    """An attached volume's device, written once in full unless told not to; detached and deleted at the end."""
    running.call("volume.create", name=name, size_bytes=size_bytes, provisioning=provisioning)
    try:
        device = str(running.call("volume.attach", name=name)["device"])
        if fill:
            fio.fill(device, size_bytes)
        yield device
    finally:
        _remove(running, name)


def _remove(running: Engine, name: str) -> None:
    """Detach and delete a volume, as soon as nobody has its device open and no session of it runs."""
    deadline = time.monotonic() + _DETACH_SECONDS
    while True:
        try:
            running.call("volume.detach", name=name)
            running.call("volume.delete", name=name)
            return
        except StillframeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def snapshot(running: Engine, volume_name: str) -> Iterator[Snapshot]:
    """A session that has just been cut. At the end it is deleted, committed or not."""
    name = f"bench-{time.time_ns()}"
    running.call("snapshot.create", volume=volume_name, name=name, repository=REPOSITORY)
    taken = Snapshot(running, name)
    try:
        yield taken
    finally:
        taken.delete()
