"""What the demo plays on: a folder, an engine of its own, mounts. All of it is gone when the stage is left."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from driver.core.client import Client
from driver.core.errors import EngineUnavailable, StillframeError
from driver.host.run import Background, run

_START_SECONDS: Final = 30.0


class Stage:
    """`folder` is the demo's own; `repository` are the keys of its only repository."""

    def __init__(self, folder: Path, repository: dict[str, str]) -> None:
        self.folder = folder
        self.url = repository["url"]
        self.state = folder / "state"
        self.client = Client(self.state)
        self._log = folder / "engine.log"
        self._stack = contextlib.ExitStack()
        self.state.mkdir(mode=0o700)
        lines = [f"{key} = {_toml(value)}" for key, value in repository.items()]
        (self.state / "repositories.toml").write_text("\n".join(["[repositories.demo]", *lines, ""]))

    def __enter__(self) -> Self:
        try:
            engine = self._stack.enter_context(self.background(
                [sys.executable, "-m", "driver.cli.main", "--state", str(self.state), "engine", "run", "--grace", "5"],
                self._log,
            ))  # fmt: skip
            deadline = time.monotonic() + _START_SECONDS
            while True:
                with contextlib.suppress(EngineUnavailable):
                    self.client.call("engine.info")
                    return self
                if engine.ended() is not None or time.monotonic() > deadline:
                    raise EngineUnavailable(f"the demo's engine did not start: {self._last_line()}")
                time.sleep(0.05)
        except BaseException:
            self._stack.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    @contextlib.contextmanager
    def background(self, command: Sequence[str], log: Path) -> Iterator[Background]:
        """A program that runs until the context is left."""
        program = Background(command, log)
        try:
            yield program
        finally:
            program.stop()

    @contextlib.contextmanager
    def mounted(self, device: str) -> Iterator[Path]:
        """The file system of a device, mounted until the context is left."""
        folder = Path(tempfile.mkdtemp(prefix="mount-", dir=self.folder))
        run(["mount", device, str(folder)])
        try:
            yield folder
        finally:
            run(["umount", str(folder)])
            folder.rmdir()

    def volume(self, name: str, make: Callable[[], None]) -> str:
        """Have a volume made, attach it, and detach it when the stage is left; its device."""
        make()
        device = str(self.client.call("volume.attach", name=name)["device"])
        self._stack.callback(self._detach, name)
        return device

    def _detach(self, name: str) -> None:
        with contextlib.suppress(StillframeError):
            self.client.call("volume.detach", name=name)


def _toml(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
