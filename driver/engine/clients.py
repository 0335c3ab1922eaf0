"""How the engine service speaks to the keeper and to the transfer supervisor. Any thread."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from driver.core import messages
from driver.core.errors import Busy, EngineUnavailable, NotFound, StillframeError

_CALL_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 10.0


class KeeperClient:
    """Calls to the keeper over its one socket; a thread of ours deals the answers out."""

    def __init__(self, fd: int, on_stop: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._on_stop = on_stop
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()  # guards the socket's sending side and `_waiting`
        self._waiting: dict[int, Future[tuple[dict[str, Any], list[int]]]] = {}
        threading.Thread(target=self._receive, name="keeper", daemon=True).start()

    def _receive(self) -> None:
        while True:
            try:
                received = messages.receive(self._socket)
            except OSError:
                received = None
            if received is None:
                self._fail_all()
                return
            message, fds = received
            if message.get("event") == "stop":
                threading.Thread(target=self._on_stop, name="stop", daemon=True).start()
                continue
            with self._sending:
                waiting = self._waiting.pop(message["id"], None)
            if waiting is not None:
                waiting.set_result((message, fds))
            else:
                messages.close_all(fds)

    def _fail_all(self) -> None:
        with self._sending:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(EngineUnavailable("the keeper is gone"))

    def _call(self, call: str, fds: Sequence[int] = (), **fields: Any) -> tuple[dict[str, Any], list[int]]:
        answer: Future[tuple[dict[str, Any], list[int]]] = Future()
        with self._sending:
            number = next(self._numbers)
            self._waiting[number] = answer
            try:
                messages.send(self._socket, {"call": call, "id": number, **fields}, fds)
            except OSError as error:
                self._waiting.pop(number, None)
                raise EngineUnavailable(f"the keeper does not answer: {error}") from error
        try:
            message, received = answer.result(_CALL_SECONDS)
        except TimeoutError:
            with self._sending:
                is_late = self._waiting.pop(number, None) is not None
            if is_late:
                raise EngineUnavailable(
                    f"the keeper has not done {call} {fields.get('helper', '')} within {_CALL_SECONDS:.0f} s",
                    "a process of the volume may wait for the disk (state D in ps, dmesg)",
                ) from None
            message, received = answer.result()  # it comes at this moment
        if "error" in message:
            raise StillframeError.from_message(message["error"])
        return message["result"], received

    def put(self, volume: str, fds: dict[str, int]) -> None:
        """Have the keeper hold duplicates of `fds`, by role; ours are the caller's to close."""
        self._call("put", list(fds.values()), volume=volume, roles=list(fds))

    def take(self, volume: str, roles: Sequence[str]) -> list[int]:
        """Duplicates of what the keeper holds. The caller's to close."""
        return self._call("take", volume=volume, roles=list(roles))[1]

    def drop(self, volume: str, roles: Sequence[str] = ()) -> None:
        """Have the keeper close what it holds of a volume for these roles, or all of it. What it lacks is no error."""
        self._call("drop", volume=volume, roles=list(roles))

    def keep(self, volume: str, key: str, name: str, argument: dict[str, Any]) -> None:
        """Have the keeper start the process `name` of a volume, known by `key`, and start it again whenever it dies."""
        self._call("keep", volume=volume, key=key, name=name, argument=argument)

    def kick(self, volume: str, key: str) -> None:
        """Kill a kept process; the keeper starts it again."""
        self._call("kick", volume=volume, key=key)

    def kick_transfer(self, pid: int) -> None:
        """Kill the transfer supervisor, if that is still the one; the keeper starts another when it is dead."""
        self._call("kick_transfer", pid=pid)

    def unkeep(self, volume: str, key: str | None = None) -> None:
        """Kill a kept process, or all of the volume, for good. Returns when they are dead."""
        self._call("unkeep", volume=volume, key=key)

    def run(self, helper: str, volumes: Sequence[str], **argument: Any) -> dict[str, Any]:
        """The result of a helper process. Raises what it raised."""
        return dict(self._call("run", helper=helper, volumes=list(volumes), argument=argument)[0])

    def show(self, volume: str, key: str) -> dict[str, Any] | None:
        """A kept process: pid, finished, given_up, deaths."""
        return next((process for process in self.show_all(volume) if process["key"] == key), None)

    def show_all(self, volume: str) -> list[dict[str, Any]]:
        """All kept processes of a volume."""
        return [dict(process) for process in self._call("show", volume=volume)[0]["processes"]]

    def roles(self, volume: str) -> list[str]:
        """The roles of the descriptors that are held of a volume."""
        return list(self._call("show", volume=volume)[0]["roles"])

    def list(self) -> dict[str, Any]:
        """What the keeper holds: roles and processes by volume, the pids of service and transfer supervisor (0: none)."""
        return self._call("list")[0]

    def stop(self) -> None:
        """Have the keeper end, and with it the engine: no service is started any more."""
        self._call("stop")


class TransferClient:
    """Calls to the transfer supervisor; a connection each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _call(self, message: dict[str, Any], fds: Sequence[int] = (), seconds: float = _CALL_SECONDS) -> dict[str, Any]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(seconds)
        try:
            try:
                connection.connect(str(self._path))
            except OSError as error:
                raise EngineUnavailable(
                    f"the transfer supervisor does not answer: {error}", "look at the engine's log; it is started again"
                ) from error
            answer, _ = messages.call(connection, message, fds)
            return dict(answer["result"])
        finally:
            connection.close()

    def start(self, job: str, kind: str, spec: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Start a job. Raises what the supervisor refuses."""
        self._call({"call": "start", "job": job, "kind": kind, "spec": spec}, fds)

    def status(self, job: str, wait_seconds: float = 0.0) -> dict[str, Any]:
        """State, progress, result and error of a job, after at most `wait_seconds` if it runs. Raises NotFound."""
        return self._call({"call": "status", "job": job, "wait_seconds": wait_seconds})

    def cancel(self, job: str) -> None:
        """End a job; when this returns its process is dead."""
        self._call({"call": "cancel", "job": job})

    def answers(self, seconds: float) -> bool:
        """Whether a call is answered within `seconds`. One that nobody takes is: then it ended, or is only being started."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(seconds)
        with connection, contextlib.suppress(StillframeError):
            try:
                connection.connect(str(self._path))
                messages.send(connection, {"call": "list"})
                messages.receive(connection)
            except (TimeoutError, BlockingIOError):  # the latter: its backlog is full
                return False
            except OSError:
                return True
        return True

    def forget(self, job: str) -> None:
        self._call({"call": "forget", "job": job})

    def ask(self, job: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Start a small job and wait for its end: its result. Raises what it failed with.

        One of that name that runs was begun by a service that is dead: it ends first, and nobody hears how.
        """
        while True:
            try:
                self.start(job, kind, spec)
                break
            except Busy:
                with contextlib.suppress(NotFound):
                    self.status(job, _CONNECT_SECONDS)
        try:
            status = self.status(job, _CONNECT_SECONDS)
            while status["state"] == "running":
                status = self.status(job, _CONNECT_SECONDS)
        finally:
            self.forget(job)
        if status["state"] == "failed":
            raise StillframeError.from_message(status["error"])
        return dict(status["result"])
