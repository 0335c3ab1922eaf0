"""A real engine on a state folder of its own, for tests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driver.core import messages
from driver.core.errors import StillframeError
from driver.host import loop
from tests.waiting import wait_until


class Engine:
    """Start, call, stop and kill. `log` is the engine's output."""

    def __init__(self, state: Path, arguments: tuple[str, ...] = ()) -> None:
        self.state = state
        self.log = state.parent / f"{state.name}.log"
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.code: Path | None = None
        """The tree whose engine is started, if it is not this one."""

    def start(self, environment: dict[str, str] | None = None, *more: str) -> Engine:
        command = [sys.executable, "-m", "driver.engine", "--state", str(self.state), *self.arguments, *more]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.code,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        return self.wait_ready()

    def wait_ready(self) -> Engine:
        """Until this engine's service answers."""
        assert self.process is not None
        process = self.process

        def is_ready() -> bool:
            assert process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, StillframeError):
                return self.call("engine.info")["keeper"] == process.pid and self.listens("transfer.sock")
            return False

        wait_until(is_ready, told=self.log.read_text)
        return self

    def take_over(self) -> int:
        """Start a second engine in the place of the one that runs: the exit code of the first."""
        old = self.process
        assert old is not None
        self.start(None, "--take-over")
        return old.wait(120)

    def call(self, call: str, **arguments: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(150)
            connection.connect(str(self.state / "run/engine.sock"))
            return dict(messages.call(connection, {"call": call, "args": arguments})[0]["result"])

    def repository(self, name: str, url: str, **keys: str) -> None:
        """Add a repository to the state folder's configuration."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [f"[repositories.{name}]", f'url = "{url}"', *(f'{key} = "{value}"' for key, value in keys.items())]
        with (self.state / "repositories.toml").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def volume(self, name: str, size_bytes: int, **properties: Any) -> str:
        """A new, attached volume's device."""
        self.call("volume.create", name=name, size_bytes=size_bytes, **properties)
        return str(self.call("volume.attach", name=name)["device"])

    def wait_snapshot(self, snapshot: str, seconds: float = 200, **arguments: Any) -> dict[str, Any]:
        """The snapshot's description once it is no longer uploading."""

        def ended() -> dict[str, Any] | None:
            shown = self.call("snapshot.show", snapshot=snapshot, **arguments)
            return shown if shown["state"] != "uploading" else None

        return wait_until(ended, seconds, self.log.read_text)

    def wait_job(self, job: str) -> dict[str, Any]:
        status = self.call("job.status", job=job, wait_seconds=10)
        while status["state"] == "running":
            status = self.call("job.status", job=job, wait_seconds=10)
        if status["error"]:
            raise StillframeError.from_message(status["error"])
        return dict(status["result"])

    def restore(self, snapshot: str, volume: str, **properties: Any) -> str:
        """The device of a new volume restored from a snapshot."""
        self.wait_job(self.call("snapshot.restore", snapshot=snapshot, volume=volume, **properties)["job"])
        return str(self.call("volume.attach", name=volume)["device"])

    def processes(self, volume: str) -> dict[str, int]:
        """The pids of a volume's kept processes, by key."""
        held = self.call("engine.info")["processes"]["volumes"][self.call("volume.show", name=volume)["id"]]
        return {process["key"]: process["pid"] for process in held["processes"]}

    def kill(self) -> None:
        """SIGKILL the keeper, and so the whole engine; its service dies a moment later, which is waited for."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)
        self.process = None
        wait_until(lambda: not self.listens("engine.sock"), told=lambda: "the engine's service outlived its keeper")

    def listens(self, name: str) -> bool:
        """Whether somebody listens there: the file stays when its maker is killed."""
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self.state / "run" / name)) == 0

    def signal(self, number: int) -> None:
        """Send it to the keeper."""
        assert self.process is not None
        self.process.send_signal(number)

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ended(self) -> int:
        """Wait until the engine ends by itself, or as it was told to; its exit code."""
        assert self.process is not None
        code = self.process.wait(120)
        self.process = None
        return code

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)
                raise
            finally:
                self.process = None

    def clean(self) -> None:
        """Stop, and remove the state folder with what is mounted in it."""
        try:
            self.stop()
        finally:
            self.clean_devices()
            shutil.rmtree(self.state, ignore_errors=True)

    def clean_devices(self) -> None:
        """Take away the devices of an engine that was killed."""
        for record in (self.state / "run" / "loops").glob("*.json"):
            noted = json.loads(record.read_text())
            with contextlib.suppress(OSError):
                loop.abandon(noted["node"], loop.LoopDevice(noted["number"], noted["sequence"], noted["boot"]))
        subprocess.run(["umount", str(self.state / "dev")], capture_output=True, check=False)


@contextlib.contextmanager
def engine(*arguments: str) -> Iterator[Engine]:
    """A running engine with the repository `local`, a folder."""
    folder = Path(tempfile.mkdtemp(prefix="stillframe-test-", dir="/var/tmp"))
    (folder / "repository").mkdir()
    made = Engine(folder / "state", ("--grace", "2", *arguments))
    made.repository("local", f"file://{folder}/repository")
    try:
        made.start()
        yield made
    except BaseException:
        print(made.log.read_text() if made.log.exists() else "no log")
        raise
    finally:
        made.clean()
        shutil.rmtree(folder, ignore_errors=True)


def run(*command: str, **options: Any) -> str:
    """A program's output; its whole output in the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, **options)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@contextlib.contextmanager
def mounted(device: str, *options: str) -> Iterator[Path]:
    """The device's file system, mounted."""
    folder = Path(tempfile.mkdtemp(prefix="stillframe-mount-", dir="/var/tmp"))
    run("mount", *options, device, str(folder))
    try:
        yield folder
    except BaseException:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        raise
    else:
        unmount(folder)
    finally:
        folder.rmdir()


def unmount(folder: Path) -> None:
    """Once nobody uses it: the last file of a process that was ended may be closed a moment later."""
    umount = functools.partial(subprocess.run, ["umount", str(folder)], capture_output=True, text=True, check=False)
    wait_until(lambda: umount().returncode == 0, told=lambda: umount().stderr)
