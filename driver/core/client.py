"""Calls to the engine service, one connection each, for the command line and the node plugin. Any thread."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from driver.core import messages
from driver.core.errors import EngineUnavailable, NotPermitted, StillframeError

_SECONDS: Final = 120.0
_WAIT_SECONDS: Final = 0.2
_POLL_SECONDS: Final = 0.1

Result = dict[str, Any]


class Client:
    """The engine that runs on the state folder `state`; it may be silent for `seconds` during a call."""

    def __init__(self, state: Path, seconds: float = _SECONDS) -> None:
        self.state = state
        self._seconds = seconds

    def call(self, call: str, fds: Sequence[int] = (), **arguments: Any) -> Result:
        """The result of a call, with which duplicates of `fds` go. Raises EngineUnavailable, NotPermitted, and what the
        engine answers."""
        path = self.state / "run" / "engine.sock"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._seconds)
        try:
            connection.connect(str(path))
        except PermissionError:
            connection.close()
            raise NotPermitted(f"{path} may not be opened by you", "run stillframe as root") from None
        except OSError:
            connection.close()
            raise EngineUnavailable(
                f"no engine runs on {self.state}", f"start it as root: stillframe --state {self.state} engine run"
            ) from None
        with connection:
            given = {key: value for key, value in arguments.items() if value is not None}
            return dict(messages.call(connection, {"call": call, "args": given}, fds)[0]["result"])

    def follow_job(self, job: str, on_progress: Callable[[Result], None]) -> Result:
        """Wait for a job's end: its result. Raises what it failed with."""
        while True:
            status = self.call("job.status", job=job, wait_seconds=_WAIT_SECONDS)
            on_progress(status["progress"] or {})
            if status["state"] == "failed":
                raise StillframeError.from_message(status["error"])
            if status["state"] == "done":
                return dict(status["result"] or {})

    def follow_snapshot(self, shown: Result, on_progress: Callable[[int, int], None]) -> Result:
        """Wait for the end of an upload: the snapshot's description then. `on_progress` is told bytes done, and in all."""
        while shown["state"] == "uploading":
            progress = shown["progress"] or {}
            on_progress(progress.get("bytes_done", 0), progress.get("bytes_total", 0))
            time.sleep(_POLL_SECONDS)
            shown = self.call("snapshot.show", snapshot=shown["handle"])
        return shown
