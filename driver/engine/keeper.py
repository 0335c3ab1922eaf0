"""The keeper: holds every volume's descriptors, forks what serves them, starts again what dies. Knows no repository.

One thread; nothing here waits for a FUSE answer, a lock or the network. It speaks with the engine service over a socket
pair (`driver.core.messages`); each request has an `id`, which its answer repeats:

    put     volume, roles + descriptors   hold them; a role put again replaces the old one
    take    volume, roles                 answers with duplicates of them
    drop    volume [, roles]              close them, all of them without `roles`
    keep    volume, key, name, argument   fork `driver.volume.process`.<name>, again whenever it dies, until it returns
    kick    volume, key                   kill it; it is started again
    unkeep  volume [, key]                kill; answers when they are reaped
    kick_transfer  pid                    kill the transfer supervisor, if it is that one; it is started again
    run     volumes, helper, argument     fork `driver.engine.helpers`.<helper>; answers when it ends
    show    volume                        what is held and kept of it
    list                                  the same of all volumes
    stop                                  end everything
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from driver.core import messages
from driver.core.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, StillframeError
from driver.core.exitcodes import EXIT_CODES
from driver.engine import handover
from driver.engine.handover import Holdings
from driver.engine.helpers import HELPERS
from driver.engine.kept import Kept, Process
from driver.engine.settings import CANNOT_START
from driver.host import kernel
from driver.host.cgroup import MemoryGroup
from driver.host.log import say
from driver.host.sockets import listen
from driver.host.spawn import fork, spawn_module
from driver.volume import process

MAINS: Final = {"serve": process.serve, "sweep": process.sweep}
_AGAIN_SECONDS: Final = 0.2
"""Between two attempts to start the same thing."""
_CANNOT_START_SECONDS: Final = 2.0
"""Between two attempts to start a service that could not, while volumes are held."""
_LEAVE_SECONDS: Final = 0.5
"""Between two looks at whether the devices are in use, when no service is there to look."""
_HELPERS_SECONDS: Final = 10.0
_ENDING_POLL_SECONDS: Final = 0.01
_ENDING_SECONDS: Final = 5.0
SOCKET: Final = "keeper.sock"
"""Under `run`, where a new keeper asks to take over."""


@dataclass(slots=True)
class Helper:
    """A helper process at work: for which request, what it has said so far, and whether it still has to be reaped.

    Instead of an answer, `then` is called with what it said at its end.
    """

    pid: int
    request: int
    output: bytearray
    then: Callable[[dict[str, Any]], None] | None = None
    alive: bool = True


@dataclass(slots=True)
class Ending:
    """A request that is answered when the last of these processes is reaped."""

    request: int
    pids: set[int]


class Keeper:
    """State and event loop of the keeper process."""

    def __init__(
        self, state: str, holdings: Holdings, arguments: list[str], grace_seconds: float, with_transfer: bool,
        transfer_group: MemoryGroup | None = None,
    ) -> None:  # fmt: skip
        self._state = state
        self._grace_seconds = grace_seconds
        self._lock = holdings.lock
        self._arguments = arguments
        self._with_transfer = with_transfer
        self._transfer_group = transfer_group
        self._selector = selectors.DefaultSelector()
        self._fds = holdings.fds
        self._kept = Kept(holdings.processes)
        self._running: dict[int, Helper] = {}  # by the pipe that it speaks into
        self._ending: list[Ending] = []
        self._service: socket.socket | None = None
        self._service_pid = 0
        self._service_due = 0.0  # when a service is to be started at the latest; 0 while one runs
        self._service_earliest = 0.0
        self._transfer_pid = 0
        self._transfer_due = 0.0
        self._is_to_stop = False  # somebody has asked for it
        self._told_to_stop: socket.socket | None = None  # to which service that was passed on
        self._grace_until = 0.0  # 0 until somebody has asked for the end
        self._leave_due = 0.0
        self._hinders = 0  # the exit code for what the last service could not start of
        self._stopping = False
        self._successors: socket.socket | None = None
        self.is_handed_over = False
        self.exit_code = 0
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            self._is_to_stop = True

    def _tell_to_stop(self) -> None:
        """Have the service, whichever runs, bring the engine to its end. Each is told once."""
        if self._is_to_stop and self._service is not None and self._told_to_stop is not self._service:
            self._told_to_stop = self._service
            with contextlib.suppress(OSError):  # it is dead, and the next one is told
                messages.send(self._service, {"event": "stop"})

    def _stop_without_service(self) -> None:
        """End the engine when the grace is over, or, while no service can start, when the devices are free."""
        now = time.monotonic()
        self._grace_until = self._grace_until or now + self._grace_seconds
        if self._service_pid:
            return
        if now >= self._grace_until:
            say("keeper", "stopping without an engine service, whether devices are in use or not")
            self._end_for_what_hinders()
        elif self._hinders and now >= self._leave_due and not self._running:
            message = {"helper": "leave", "volumes": [], "argument": {"records": f"{self._state}/run/loops"}}
            self._leave_due = now + _LEAVE_SECONDS
            try:
                self._run_helper(message, self._on_left)
            except OSError as error:
                say("keeper", f"cannot start a process: {error}; trying again")

    def _on_left(self, said: dict[str, Any]) -> None:
        self._leave_due = time.monotonic() + _LEAVE_SECONDS
        if said.get("result") == {"in_use": []} and not self._service_pid:
            self._end_for_what_hinders()

    def _end_for_what_hinders(self) -> None:
        self._stopping, self.exit_code = True, self._hinders

    def start_kept(self) -> None:
        """Start the processes of volumes that were taken over."""
        self._start_due()

    def run(self) -> None:
        """Until a `stop`, or until a new keeper has taken over."""
        self._listen()
        self._service_due = time.monotonic()
        if self._with_transfer:
            self._transfer_due = time.monotonic()
        while not self._stopping:
            waits = not self._start_due()
            self._tell_to_stop()
            if self._is_to_stop:
                self._stop_without_service()
            for key, _ in self._selector.select(_AGAIN_SECONDS if waits else None):
                self._on_readable(key)
            self._reap()
        if not self.is_handed_over:
            self._end()

    def _listen(self) -> None:
        """Be there for a keeper that is to take over."""
        self._successors = listen(Path(self._state) / "run" / SOCKET, "engine")
        self._selector.register(self._successors, selectors.EVENT_READ)

    def _listen_no_more(self) -> None:
        if self._successors is not None:
            self._selector.unregister(self._successors)
            self._successors.close()
            self._successors = None

    def _start_due(self) -> bool:
        """Start what is to run and does not. False if something has to be tried again."""
        now = time.monotonic()
        try:
            may_start = now >= self._service_earliest and not self._running
            if self._service_due and (may_start or now >= self._service_due):
                self._start_service()
            if self._transfer_due and now >= self._transfer_due:
                self._start_transfer()
            for dead in self._kept.due():
                if dead.volume in self._fds:
                    self._fork(dead)
        except OSError as error:  # EAGAIN, ENOMEM: the machine is full for now
            say("keeper", f"cannot start a process: {error}; trying again")
            return False
        return not (self._service_due or self._transfer_due)

    def _on_readable(self, key: selectors.SelectorKey) -> None:
        if key.fd == self._wake:
            os.read(self._wake, 4096)
        elif self._service is not None and key.fileobj is self._service:
            self._on_request()
        elif self._successors is not None and key.fileobj is self._successors:
            self._on_successor()
        elif key.fd in self._running:
            self._on_output(key.fd)

    # --- the service's requests

    def _on_request(self) -> None:
        assert self._service is not None
        try:
            received = messages.receive(self._service)
        except (OSError, StillframeError) as error:
            say("keeper", f"the engine service's connection broke: {error}")
            received = None
        if received is None:
            self._selector.unregister(self._service)
            self._service.close()
            self._service = None
            return
        message, fds = received
        number = message.get("id", 0)
        try:
            result, out = self._do(message, fds)
        except StillframeError as error:
            self._answer(number, {"error": error.to_message()})
        except (KeyError, TypeError, ValueError) as error:
            self._answer(number, {"error": Internal(f"keeper: {message.get('call')}: {error!r}").to_message()})
        except OSError as error:
            wrong = FailedPrecondition(f"{message.get('call')} {message.get('helper', '')}: {error}", "try again")
            self._answer(number, {"error": wrong.to_message()})
        else:
            if result is not None:
                self._answer(number, {"result": result}, out)

    def _answer(self, number: int, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._service is None:
            return
        try:
            messages.send(self._service, {"id": number, **message}, fds or [])
        except OSError as error:
            say("keeper", f"the engine service does not take answers: {error}")

    def _do(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any] | None, list[int]]:
        """Carry out a request; None means that the answer comes later."""
        match message["call"]:
            case "put":
                held = self._fds.setdefault(message["volume"], {})
                for role, fd in zip(message["roles"], fds, strict=True):
                    if role in held:
                        os.close(held[role])
                    held[role] = fd
            case "take":
                held = self._held(message["volume"])
                missing = [role for role in message["roles"] if role not in held]
                if missing:
                    raise NotFound(f"the keeper holds no {', '.join(missing)} of volume {message['volume']}")
                return {"roles": message["roles"]}, [held[role] for role in message["roles"]]
            case "drop":
                held = self._fds.get(message["volume"], {})
                for role in message.get("roles") or list(held):
                    if role in held:
                        os.close(held.pop(role))
                if not held:
                    self._fds.pop(message["volume"], None)
            case "keep":
                self._held(message["volume"])
                if message["name"] not in MAINS:
                    raise InvalidArgument(f"there is no process {message['name']!r}")
                self._kept.add(Process(message["volume"], message["key"], message["name"], message["argument"]))
                self._start_due()
            case "kick":
                self._kill(self._kept.named(message["volume"], message["key"]))
            case "kick_transfer":
                if self._transfer_pid and self._transfer_pid == message["pid"]:
                    os.kill(self._transfer_pid, signal.SIGKILL)
            case "unkeep":
                pids = self._kill(self._kept.remove(message["volume"], message.get("key")))
                if pids:
                    self._ending.append(Ending(int(message.get("id", 0)), pids))
                    return None, []
            case "run":
                self._run_helper(message)
                return None, []
            case "show":
                return self._show(message["volume"]), []
            case "list":
                return self._list(), []
            case "stop":
                self._stopping = True
            case other:
                raise InvalidArgument(f"the keeper has no call {other!r}")
        return {}, []

    def _held(self, volume: str) -> dict[str, int]:
        if volume not in self._fds:
            raise NotFound(f"the keeper holds no volume {volume}")
        return self._fds[volume]

    def _show(self, volume: str) -> dict[str, Any]:
        return {"roles": sorted(self._fds.get(volume, {})), "processes": self._kept.describe(volume)}

    def _list(self) -> dict[str, Any]:
        volumes = {volume: self._show(volume) for volume in self._fds}
        return {"volumes": volumes, "service": self._service_pid, "transfer": self._transfer_pid}

    # --- another keeper

    def _on_successor(self) -> None:
        assert self._successors is not None
        with self._successors.accept()[0] as peer:
            try:
                handover.admit(peer)
                say("keeper", "handing over to another keeper")
                self._end_of_service()
                handover.give(peer, Holdings(self._lock, self._fds, self._kept.all()))
                self._listen_no_more()
                self._end_kept()
                handover.tell(peer, "dead")
                handover.expect(peer, "taken")
            except (StillframeError, OSError) as error:
                say("keeper", f"not handed over, going on: {error}")
                handover.refuse(peer, error)
                self._go_on()
            else:
                say("keeper", "handed over")
                self._stopping = self.is_handed_over = True

    def _end_of_service(self) -> None:
        """End the engine service, its helpers and the senders; the volumes do not notice. Raises FailedPrecondition."""
        if self._service is not None:
            self._selector.unregister(self._service)
            self._service.close()
            self._service = None
        self._service_due = self._transfer_due = 0.0
        if self._service_pid:
            os.kill(self._service_pid, signal.SIGKILL)
        if self._transfer_pid:
            os.kill(self._transfer_pid, signal.SIGKILL)  # its jobs die with it
        self._until(lambda: not (self._service_pid or self._transfer_pid or self._running), "service, helpers and senders")

    def _end_kept(self) -> None:
        """Kill the processes of all volumes, and wait until they are dead. Raises FailedPrecondition."""
        self._kill(self._kept.all())
        self._until(lambda: not any(kept.pid for kept in self._kept.all()), "processes of the volumes")

    def _until(self, is_done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _HELPERS_SECONDS
        while not is_done():
            if time.monotonic() > deadline:
                raise FailedPrecondition(f"the {what} do not end", "a process may wait for the disk (state D in ps, dmesg)")
            for key, _ in self._selector.select(_ENDING_POLL_SECONDS):
                if key.fd == self._wake or key.fd in self._running:
                    self._on_readable(key)
            self._reap()

    def _go_on(self) -> None:
        """After a handover that came to nothing."""
        if self._successors is None:
            self._listen()
        if not self._service_pid:
            self._service_due = time.monotonic()
        if self._with_transfer and not self._transfer_pid:
            self._transfer_due = time.monotonic()

    # --- forks

    def _fork(self, wanted: Process) -> None:
        roles = dict(self._held(wanted.volume))
        main = MAINS[wanted.name]
        wanted.pid = fork(lambda: main(roles, wanted.argument), [self._lock, *roles.values()], f"sf-{wanted.name}")

    def _run_helper(self, message: dict[str, Any], then: Callable[[dict[str, Any]], None] | None = None) -> None:
        helper = HELPERS[message["helper"]]
        volumes = {volume: dict(self._held(volume)) for volume in message["volumes"]}
        reading, writing = os.pipe2(os.O_CLOEXEC)

        def main() -> None:
            try:
                output: dict[str, Any] = {"result": helper(volumes, message["argument"])}
            except StillframeError as error:
                output = {"error": error.to_message()}
            except OSError as error:
                output = {"error": Internal(f"{message['helper']}: {error}").to_message()}
            os.write(writing, json.dumps(output).encode())

        inherited = [self._lock, writing, *(fd for roles in volumes.values() for fd in roles.values())]
        try:
            pid = fork(main, inherited, f"sf-{message['helper']}")
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._running[reading] = Helper(pid, int(message.get("id", 0)), bytearray(), then)
        self._selector.register(reading, selectors.EVENT_READ)

    def _on_output(self, pipe: int) -> None:
        helper = self._running[pipe]
        data = os.read(pipe, 65536)
        helper.output += data
        if data:
            return
        self._selector.unregister(pipe)
        os.close(pipe)
        del self._running[pipe]
        try:
            answer = json.loads(helper.output)
        except ValueError:
            answer = {"error": FailedPrecondition(f"a helper process ({helper.pid}) died in the middle").to_message()}
        if helper.then is not None:
            helper.then(answer)
        else:
            self._answer(helper.request, answer)

    def _kill(self, processes: list[Process]) -> set[int]:
        """SIGKILL them; the pids that are to be reaped."""
        pids = {process.pid for process in processes if process.pid}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._note_end(pid)
            if pid == self._service_pid:
                self._on_service_end(code)
            elif pid == self._transfer_pid:
                say("keeper", f"the transfer supervisor ended ({code}); starting it again")
                self._transfer_pid = 0
                self._transfer_due = time.monotonic() + 0.1
            else:
                failed = self._kept.died(pid, code, time.monotonic())
                if failed is not None:
                    self._give_up(failed)

    def _on_service_end(self, code: int) -> None:
        """Start it again. One that cannot start ends us, with its exit code, but not while there are devices to lose."""
        self._service_pid = 0
        if self._is_to_stop and not self._fds:  # nobody has to detach anything
            self._stopping = True
            return
        cannot_start = code - CANNOT_START in EXIT_CODES.values()
        self._hinders = code - CANNOT_START if cannot_start else 0
        if cannot_start and not self._fds:
            self._end_for_what_hinders()
            return
        say("keeper", f"the engine service ended ({code}); starting it again")
        if cannot_start:
            self._service_earliest = time.monotonic() + _CANNOT_START_SECONDS
        self._end_helpers()

    def _note_end(self, pid: int) -> None:
        """Tell those who waited for the process's end."""
        for helper in self._running.values():
            if helper.pid == pid:
                helper.alive = False
        for ending in self._ending:
            ending.pids.discard(pid)
            if not ending.pids:
                self._answer(ending.request, {"result": {}})
        self._ending = [ending for ending in self._ending if ending.pids]

    def _end_helpers(self) -> None:
        """Whoever asked for them is dead; what it did not live to note, its successor must not meet half done.

        A helper that even SIGKILL does not end, because the kernel waits for a disk, is left behind after a while.
        """
        for helper in self._running.values():
            helper.request = 0
            if helper.alive:
                os.kill(helper.pid, signal.SIGKILL)
        self._ending.clear()
        self._service_due = time.monotonic() + _HELPERS_SECONDS

    def _give_up(self, failed: Process) -> None:
        """A process that cannot be kept alive. A volume process: its volume answers EIO from now on; a session goes on."""
        say("keeper", f"volume {failed.volume}: {failed.key} died too often and is not started again")
        if failed.name == "serve":
            say("keeper", f"volume {failed.volume}: its device is dead until it is detached and attached again")
            self._kill(self._kept.give_up(failed.volume, "serve"))
            fuse = self._fds.get(failed.volume, {}).pop("fuse", None)
            if fuse is not None:
                os.close(fuse)

    def _start_service(self) -> None:
        if self._service is not None:
            self._selector.unregister(self._service)
            self._service.close()
            self._service = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        arguments = ["--state", self._state, "--keeper", str(theirs.fileno()), *self._arguments]
        try:
            self._service_pid = spawn_module("driver.engine.service", arguments, [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._service_due = 0.0
        self._service_earliest = time.monotonic() + _AGAIN_SECONDS
        self._service = ours
        self._selector.register(ours, selectors.EVENT_READ)

    def _start_transfer(self) -> None:
        self._transfer_pid = spawn_module("driver.transfer.supervisor", ["--state", self._state], [])
        try:
            kernel.offer_to_oom_killer(self._transfer_pid)
            if self._transfer_group is not None:
                self._transfer_group.add(self._transfer_pid)
        except OSError as error:
            say("keeper", f"the transfer supervisor runs without its limits: {error}")
        self._transfer_due = 0.0

    def _end(self) -> None:
        for ended in self._kept.all():
            if ended.pid:
                os.kill(ended.pid, signal.SIGKILL)
        for pid in (self._transfer_pid, self._service_pid):
            if pid:
                os.kill(pid, signal.SIGTERM)
                _wait(pid, _ENDING_SECONDS)
        if self._transfer_group is not None:
            self._transfer_group.remove()


def _wait(pid: int, seconds: float) -> None:
    """Reap a child, after SIGKILL if it does not end by itself."""
    deadline = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(_ENDING_POLL_SECONDS)
