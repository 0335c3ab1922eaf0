"""Other programs: argument lists, no shell, a time limit, and their output in the error."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from driver.core.errors import DeviceError, Unsupported


@dataclass(frozen=True, slots=True)
class Ended:
    """A program's exit code (negative: the signal that ended it) and its output."""

    command: str
    code: int
    output: str
    errors: str

    def failed(self) -> DeviceError:
        """The error that a caller raises who makes nothing of the exit code."""
        said = " ".join((self.errors or self.output).split())
        return DeviceError(f"{self.command} ended with {self.code}: {said}")


def finish(command: Sequence[str], seconds: float = 300.0) -> Ended:
    """Run a program whose exit code says more than success. Raises Unsupported, or DeviceError if it takes too long."""
    if shutil.which(command[0]) is None:
        raise Unsupported(f"the program {command[0]} is not installed", "install it, then try again")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{' '.join(command)} took over {seconds:.0f} s") from None
    return Ended(" ".join(command), done.returncode, done.stdout, done.stderr)


def run(command: Sequence[str], seconds: float = 300.0) -> str:
    """The output of a program. Raises Unsupported if it is not installed, DeviceError if it fails or takes too long."""
    ended = finish(command, seconds)
    if ended.code != 0:
        raise ended.failed()
    return ended.output


class Background:
    """A program in a process group of its own, so that an interrupt at the terminal does not reach it."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def stop(self, seconds: float = 30.0) -> None:
        """SIGTERM, and SIGKILL when that takes too long. Returns when it is dead."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
