"""Long work that a caller asks after. One thread a job. The transfer supervisor does the work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from driver.core.errors import DeviceError, Internal, NotFound, StillframeError
from driver.core.ids import new_id
from driver.engine.clients import TransferClient

_FINISHED_KEPT = 200


class Jobs:
    """The jobs of this service's life."""

    def __init__(self, transfer: TransferClient) -> None:
        self._transfer = transfer
        self._changed = threading.Condition()  # guards `_jobs`
        self._jobs: dict[str, dict[str, Any]] = {}

    def start(
        self,
        kind: str,
        spec: dict[str, Any],
        fds: Sequence[int] = (),
        then: Callable[[StillframeError | None], None] | None = None,
        job: str | None = None,
    ) -> str:
        """Start a job of the transfer supervisor; `then` runs after its end, with its error, before anyone hears of it.

        Takes over `fds`. Raises what the supervisor refuses.
        """
        job = job or new_id()
        try:
            self._transfer.start(job, kind, spec, fds)
        finally:
            for fd in fds:
                os.close(fd)
        self.follow(job, then)
        return job

    def follow(self, job: str, then: Callable[[StillframeError | None], None] | None) -> None:
        """Watch a job that the supervisor has."""
        self._set(job, {"state": "running", "progress": {}, "result": {}, "error": None})
        threading.Thread(target=self._follow, args=[job, then], name=f"job-{job}", daemon=True).start()

    def note_failure(self, job: str, error: dict[str, Any]) -> None:
        """Answer from now on for a job that somebody else has followed: it failed with `error`, a message."""
        self._set(job, {"state": "failed", "progress": {}, "result": {}, "error": error})

    def _follow(self, job: str, then: Callable[[StillframeError | None], None] | None) -> None:
        while True:
            try:
                status = self._transfer.status(job, 1.0)
            except StillframeError as error:
                lost = Internal(f"the transfer supervisor lost the work: {error.message}", "try again")
                status = {"state": "failed", "progress": {}, "result": {}, "error": lost.to_message()}
            status = {key: status.get(key) for key in ("state", "progress", "result", "error")}
            if status["state"] == "running":
                self._set(job, status)
                time.sleep(0.05)
                continue
            failure = StillframeError.from_message(status["error"]) if status["state"] == "failed" else None
            try:
                if then is not None:
                    then(failure)
            except StillframeError as other:
                status.update(state="failed", error=other.to_message())
            except OSError as other:
                hint = "make room on that disk, or mend it, and start the engine again"
                unnoted = DeviceError(f"its end cannot be noted on the disk of the state folder: {other}", hint)
                status.update(state="failed", error=unnoted.to_message())
            self._set(job, status)
            return

    def _set(self, job: str, status: dict[str, Any]) -> None:
        with self._changed:
            self._jobs[job] = status
            ended = [key for key, value in self._jobs.items() if value["state"] != "running"]
            for key in ended[:-_FINISHED_KEPT]:
                del self._jobs[key]
            self._changed.notify_all()

    def status(self, job: str, wait_seconds: float) -> dict[str, Any]:
        """The job's status, after its end or at most `wait_seconds`. Raises NotFound."""
        deadline = time.monotonic() + min(wait_seconds, 10.0)
        with self._changed:
            while True:
                status = self._jobs.get(job)
                if status is None:
                    raise NotFound(f"there is no job {job!r}", "the engine was started again since; ask again")
                left = deadline - time.monotonic()
                if status["state"] != "running" or left <= 0:
                    return status
                self._changed.wait(left)
