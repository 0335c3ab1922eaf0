"""Other programs: argument lists, no shell, a time limit, and their output in the error."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from driver.core.errors import DeviceError, Unsupported


def run(command: Sequence[str], seconds: float = 300.0) -> str:
    """The output of a program. Raises Unsupported if it is not installed, DeviceError if it fails or takes too long."""
    if shutil.which(command[0]) is None:
        raise Unsupported(f"the program {command[0]} is not installed", "install it, then try again")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{' '.join(command)} took over {seconds:.0f} s") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise DeviceError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done.stdout


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
