"""The keeper: holds every volume's descriptors, forks what serves them, starts again what dies. Knows no repository.

One thread; nothing here waits for a FUSE answer, a lock or the network. It speaks with the engine service over a socket
pair (`driver.core.messages`); each request has an `id`, which its answer repeats:

    put     volume, roles + descriptors   hold them; a role put again replaces the old one
    take    volume, roles                 answers with duplicates of them
    drop    volume [, roles]              close them, all of them without `roles`
    keep    volume, key, name, argument   fork `driver.volume.process`.<name>, again whenever it dies, until it returns
    unkeep  volume [, key]                kill and reap
    run     volumes, helper, argument     fork `driver.engine.helpers`.<helper>; answers when it ends
    list                                  what is held and kept
    stop                                  end everything
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any, Final, NoReturn

from driver.core import messages
from driver.core.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, StillframeError
from driver.engine.helpers import HELPERS
from driver.engine.kept import Kept, Process
from driver.engine.settings import CANNOT_START
from driver.host import kernel
from driver.host.spawn import fork, spawn_module
from driver.volume import process

MAINS: Final = {"serve": process.serve, "sweep": process.sweep}
_DEVICES: Final = "dev"


class Keeper:
    """State and event loop of the keeper process."""

    def __init__(self, state: str, lock: int, arguments: list[str], with_transfer: bool) -> None:
        self._state = state
        self._lock = lock
        self._arguments = arguments
        self._with_transfer = with_transfer
        self._selector = selectors.DefaultSelector()
        self._fds: dict[str, dict[str, int]] = {}
        self._kept = Kept()
        self._running: dict[int, tuple[int, int, bytearray]] = {}  # pipe: (pid, request id, output)
        self._service: socket.socket | None = None
        self._service_pid = 0
        self._transfer_pid = 0
        self._stopping = False
        self.exit_code = 0
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD and self._service is not None:
            messages.send(self._service, {"event": "stop"})

    def run(self) -> None:
        """Until a `stop`."""
        self._start_service()
        if self._with_transfer:
            self._start_transfer()
        while not self._stopping:
            for key, _ in self._selector.select():
                self._on_readable(key)
            self._reap()
            for dead in self._kept.due():
                self._fork(dead)
        self._end()

    def _on_readable(self, key: selectors.SelectorKey) -> None:
        if key.fd == self._wake:
            os.read(self._wake, 4096)
        elif self._service is not None and key.fileobj is self._service:
            self._on_request()
        elif key.fd in self._running:
            self._on_output(key.fd)

    # --- the service's requests

    def _on_request(self) -> None:
        assert self._service is not None
        try:
            received = messages.receive(self._service)
        except (OSError, StillframeError) as error:
            say(f"the engine service's connection broke: {error}")
            received = None
        if received is None:
            self._selector.unregister(self._service)
            self._service.close()
            self._service = None
            return
        message, fds = received
        number = int(message.get("id", 0))
        try:
            result, out = self._do(message, fds)
        except StillframeError as error:
            self._answer(number, {"error": error.to_message()})
        except (KeyError, TypeError, ValueError, OSError) as error:
            self._answer(number, {"error": Internal(f"keeper: {message.get('call')}: {error!r}").to_message()})
        else:
            if result is not None:
                self._answer(number, {"result": result}, out)

    def _answer(self, number: int, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._service is None:
            return
        try:
            messages.send(self._service, {"id": number, **message}, fds or [])
        except OSError as error:
            say(f"the engine service does not take answers: {error}")

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
                wanted = Process(message["volume"], message["key"], message["name"], message["argument"])
                if self._kept.add(wanted):
                    self._fork(wanted)
            case "unkeep":
                for ended in self._kept.remove(message["volume"], message.get("key")):
                    if ended.pid:
                        os.kill(ended.pid, signal.SIGKILL)
                        os.waitpid(ended.pid, 0)
            case "run":
                self._run_helper(message)
                return None, []
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

    def _list(self) -> dict[str, Any]:
        volumes = {}
        for volume, held in self._fds.items():
            volumes[volume] = {"roles": sorted(held), "processes": self._kept.describe(volume)}
        return {"volumes": volumes, "service": self._service_pid, "transfer": self._transfer_pid}

    # --- forks

    def _fork(self, wanted: Process) -> None:
        roles = dict(self._held(wanted.volume))
        main = MAINS[wanted.name]
        wanted.pid = fork(lambda: main(roles, wanted.argument), [self._lock, *roles.values()], f"sf-{wanted.name}")

    def _run_helper(self, message: dict[str, Any]) -> None:
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
        pid = fork(main, inherited, f"sf-{message['helper']}")
        os.close(writing)
        self._running[reading] = (pid, int(message.get("id", 0)), bytearray())
        self._selector.register(reading, selectors.EVENT_READ)

    def _on_output(self, pipe: int) -> None:
        pid, number, output = self._running[pipe]
        data = os.read(pipe, 65536)
        output += data
        if data:
            return
        self._selector.unregister(pipe)
        os.close(pipe)
        del self._running[pipe]
        try:
            answer = json.loads(output)
        except ValueError:
            answer = {"error": FailedPrecondition(f"a helper process ({pid}) died in the middle").to_message()}
        self._answer(number, answer)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._service_pid and code == CANNOT_START:
                self._service_pid = 0
                self._stopping = True
                self.exit_code = 1
            elif pid == self._service_pid:
                say(f"the engine service ended ({code}); starting it again")
                self._start_service()
            elif pid == self._transfer_pid:
                say(f"the transfer supervisor ended ({code}); starting it again")
                time.sleep(0.1)
                self._start_transfer()
            else:
                failed = self._kept.died(pid, code, time.monotonic())
                if failed is not None:
                    self._give_up(failed)

    def _give_up(self, failed: Process) -> None:
        """A process that cannot be kept alive. A volume process: its volume answers EIO from now on."""
        say(f"volume {failed.volume}: {failed.key} died too often and is not started again")
        if failed.name == "serve":
            say(f"volume {failed.volume}: its device is dead until it is detached and attached again")
            for other in self._kept.remove(failed.volume, None):
                if other.pid:
                    os.kill(other.pid, signal.SIGKILL)
                    os.waitpid(other.pid, 0)
            fuse = self._fds.get(failed.volume, {}).pop("fuse", None)
            if fuse is not None:
                os.close(fuse)

    def _start_service(self) -> None:
        if self._service is not None:
            self._selector.unregister(self._service)
            self._service.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        arguments = ["--state", self._state, "--keeper", str(theirs.fileno()), *self._arguments]
        self._service_pid = spawn_module("driver.engine.service", arguments, [theirs.fileno()])
        theirs.close()
        self._service = ours
        self._selector.register(ours, selectors.EVENT_READ)

    def _start_transfer(self) -> None:
        self._transfer_pid = spawn_module("driver.transfer.supervisor", ["--state", self._state], [])

    def _end(self) -> None:
        for ended in self._kept.all():
            if ended.pid:
                os.kill(ended.pid, signal.SIGKILL)
        for pid in (self._transfer_pid, self._service_pid):
            if pid:
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)


def say(text: str) -> None:
    """A line in the log (standard error)."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}", file=sys.stderr, flush=True)


def lock_state(state: str) -> int:
    """The lock of the state folder, held by us and by all that we fork. Raises FailedPrecondition if another has it."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    lock = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            f"another engine runs on {state}", "stop it first (stillframe engine stop), or use another --state"
        ) from None
    return lock


def prepare_mounts(state: str) -> int:
    """A place for device nodes that the host sees, and a mount namespace of our own. A descriptor of the host's one."""
    devices = f"{state}/{_DEVICES}"
    os.makedirs(devices, mode=0o700, exist_ok=True)
    if not os.path.ismount(devices):
        kernel.mount("stillframe-dev", devices, "tmpfs", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=0700,size=1m")
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    kernel.unshare_mounts()
    return host


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="stillframe-keeper")
    parser.add_argument("--state", required=True)
    parser.add_argument("--without-transfer", action="store_true", help="the transfer supervisor runs elsewhere")
    options, rest = parser.parse_known_args()
    state = os.path.realpath(options.state)
    try:
        lock = lock_state(state)
        host = prepare_mounts(state)
    except StillframeError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    except OSError as error:
        sys.exit(f"error: {state}: {error}\nhint: run the engine as root")
    kernel.set_process_name("sf-keeper")
    kernel.no_core_dump()
    gc.collect()
    gc.freeze()  # what is shared with the forks stays shared: no collection writes to it
    keeper = Keeper(state, lock, rest, not options.without_transfer)
    keeper.run()
    kernel.enter_mounts(host)
    try:
        kernel.umount(f"{state}/{_DEVICES}")
    except OSError as error:
        say(f"{state}/{_DEVICES} stays mounted: {error}")
    sys.exit(keeper.exit_code)


if __name__ == "__main__":
    main()
