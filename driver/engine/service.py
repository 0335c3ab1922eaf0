"""The engine service: answers the command line (and the node plugin) over `run/engine.sock`. Holds no I/O.

A thread a connection, one call after another on each; `CALLS` says what there is. It may die at any time: the keeper
starts it again, and it finds volumes, sessions and restores by their records.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from driver import __version__
from driver.core import messages, settings
from driver.core.errors import Internal, InvalidArgument, NotPermitted, StillframeError
from driver.core.exitcodes import exit_code
from driver.core.messages import Message
from driver.engine import vigil
from driver.engine.clients import KeeperClient, TransferClient
from driver.engine.figures import figures
from driver.engine.jobs import Jobs
from driver.engine.records import Folder
from driver.engine.sessions import Sessions
from driver.engine.settings import CANNOT_START, Settings, parse
from driver.engine.snapshots import Snapshots
from driver.engine.volumes import Volumes
from driver.host import kernel
from driver.host.diskerrors import disk_error, is_of_the_disk
from driver.host.log import say
from driver.host.sockets import check_peer, listen

_TRANSFER_SECONDS: Final = 20.0


class Arguments(dict[str, Any]):
    """A call's arguments; one that is needed and missing is an InvalidArgument. `fds` are closed after the call."""

    fds: Sequence[int] = ()

    def __missing__(self, key: str) -> Any:
        raise InvalidArgument(f"the argument {key!r} is missing")


class Service:
    """Everything that a call may need."""

    def __init__(self, given: Settings, keeper_fd: int) -> None:
        self.settings = given
        self._stopping = threading.Lock()
        self._ready = threading.Event()
        self.folder = Folder(given.state)
        self.engine_id = self.folder.engine_id()
        self.keeper = KeeperClient(keeper_fd, lambda: self.stop(given.grace_seconds))
        self.transfer = TransferClient(given.state / "run" / "transfer.sock")
        if not self.keeper.list()["volumes"]:
            self._clean()
        self.volumes = Volumes(self.folder, given, self.keeper, self.engine_id)
        self.jobs = Jobs(self.transfer)
        self.sessions = Sessions(self.folder, given, self.volumes, self.keeper, self.transfer, self.jobs)
        self.snapshots = Snapshots(self.sessions, self.volumes, self.transfer, self.jobs)
        self._ready.set()

    def _clean(self) -> None:
        """Take away what an earlier engine on this state folder left: loop devices and nodes."""
        for line in self.keeper.run("clean", [], records=f"{self.settings.state}/run/loops")["stuck"]:
            say("engine", f"left by an earlier engine: {line}")
        for name in os.listdir(self.settings.state / "dev"):
            os.unlink(self.settings.state / "dev" / name)

    def resume(self) -> None:
        """Go on with what the transfer supervisor was doing for an earlier service, if there is anything."""
        if all(record.state != "restoring" for record in self.volumes.all()):
            return
        deadline = time.monotonic() + _TRANSFER_SECONDS
        while not (self.settings.state / "run" / "transfer.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.snapshots.resume_restores()

    def repository(self, arguments: Arguments) -> str:
        """The repository that the call names, by its handle or by name, else the default one. Raises NotFound."""
        named, _, _ = str(arguments.get("snapshot", "")).rpartition(":")
        return settings.repository(self.settings.state, named or arguments.get("repository")).name

    def stop(self, grace_seconds: float) -> None:
        """Detach all volumes, waiting `grace_seconds` for those in use; then have the keeper end everything."""
        if not self._stopping.acquire(blocking=False):
            return
        self._ready.wait()
        deadline = time.monotonic() + grace_seconds
        for record in self.volumes.all():
            while self.volumes.is_held(record):
                try:
                    self.volumes.detach(record.name)
                    break
                except StillframeError as error:
                    if time.monotonic() > deadline:
                        say("engine", f"stopping although volume {record.name} is in use: {error}")
                        break
                    time.sleep(0.2)
        if any(self.volumes.is_left_out(volume) for volume in self.keeper.list()["volumes"]):
            self._leave(deadline)
        self.keeper.stop()

    def _leave(self, deadline: float) -> None:
        """Take away the devices of volumes that are left out, waiting for those in use."""
        while time.monotonic() <= deadline:
            try:
                if not self.keeper.run("leave", [], records=f"{self.settings.state}/run/loops")["in_use"]:
                    return
            except StillframeError as error:
                say("engine", f"devices of volumes that are left out: {error}")
            time.sleep(0.2)


def _volume(service: Service, name: str) -> Message:
    return service.volumes.describe(service.volumes.record(name))


def _named(service: Service, arguments: Arguments, key: str = "name") -> str:
    """The name of the volume that the call means, by name or by id."""
    return service.volumes.name_of(arguments[key])


def _info(service: Service, arguments: Arguments) -> Message:
    given = service.settings
    configured = settings.repositories(given.state)
    return {
        "version": __version__, "node": service.settings.node,
        "pid": os.getpid(), "keeper": os.getppid(), "engine_id": service.engine_id, "state": str(given.state),
        "repositories": [{"name": r.name, "url": r.url, "default": r.default} for r in configured],
        "settings": {
            "node_bytes": given.node_bytes, "session_bytes": given.session_bytes, "spill_bytes": given.spill_bytes,
            "upload_rate": given.upload_rate, "processes": given.processes,
        },
        "processes": service.keeper.list(),
    }  # fmt: skip


def _stop(service: Service, arguments: Arguments) -> Message:
    grace = float(arguments.get("grace_seconds", service.settings.grace_seconds))
    threading.Timer(0.05, service.stop, [grace]).start()
    return {}


def _create_volume(service: Service, arguments: Arguments) -> Message:
    record = service.volumes.create(
        arguments["name"], int(arguments["size_bytes"]), arguments.get("provisioning", "thick"),
        int(arguments.get("logical_block_size", 4096)), int(arguments.get("processes", 0)),
        new=bool(arguments.get("new", False)),
    )  # fmt: skip
    return _volume(service, record.name)


def _list_volumes(service: Service, arguments: Arguments) -> Message:
    return {"volumes": [service.volumes.describe(record) for record in service.volumes.all()]}


def _attach(service: Service, arguments: Arguments) -> Message:
    return _volume(service, service.volumes.attach(_named(service, arguments)).name)


def _detach(service: Service, arguments: Arguments) -> Message:
    return _volume(service, service.volumes.detach(_named(service, arguments)).name)


def _note_formatted(service: Service, arguments: Arguments) -> Message:
    return _volume(service, service.volumes.note_formatted(_named(service, arguments)).name)


def _note_growing(service: Service, arguments: Arguments) -> Message:
    record = service.volumes.note_growing(_named(service, arguments), growing=bool(arguments["growing"]))
    return _volume(service, record.name)


def _grow(service: Service, arguments: Arguments) -> Message:
    return _volume(service, service.volumes.grow(_named(service, arguments), int(arguments["size_bytes"])).name)


def _delete_volume(service: Service, arguments: Arguments) -> Message:
    service.volumes.delete(_named(service, arguments))
    return {}


def _create_snapshot(service: Service, arguments: Arguments) -> Message:
    record = service.sessions.create(
        _named(service, arguments, "volume"), arguments.get("name"), service.repository(arguments),
        arguments.get("on_buffer_full", "throttle"), freeze=arguments.fds, full=bool(arguments.get("full", False)),
        new=bool(arguments.get("new", False)),
    )  # fmt: skip
    return service.sessions.describe(record)


def _create_group(service: Service, arguments: Arguments) -> Message:
    volumes = [service.volumes.name_of(volume) for volume in arguments["volumes"]]
    records = service.sessions.create_group(
        arguments["group"], volumes, service.repository(arguments), arguments.get("on_buffer_full", "throttle"),
        freeze=arguments.fds,
    )  # fmt: skip
    return {"snapshots": [service.sessions.describe(record) for record in records]}


def _clone(service: Service, arguments: Arguments) -> Message:
    size_bytes = arguments.get("size_bytes")
    source = _named(service, arguments, "source")
    record = service.snapshots.clone(
        source, arguments["name"], None if size_bytes is None else int(size_bytes), arguments.get("provisioning"),
        int(arguments.get("processes", 0)),
    )
    return service.volumes.describe(record)


def _capacity(service: Service, arguments: Arguments) -> Message:
    return service.volumes.capacity()


def _seconds(arguments: Arguments) -> float | None:
    """How long the caller waits for a repository, if it has said so."""
    seconds = arguments.get("seconds")
    return None if seconds is None else float(seconds)


def _list_snapshots(service: Service, arguments: Arguments) -> Message:
    return {"snapshots": service.snapshots.list(service.repository(arguments), _seconds(arguments))}


def _show_snapshot(service: Service, arguments: Arguments) -> Message:
    return service.snapshots.show(arguments["snapshot"], service.repository(arguments), _seconds(arguments))


def _verify(service: Service, arguments: Arguments) -> Message:
    return {"job": service.snapshots.verify(arguments["snapshot"], service.repository(arguments))}


def _restore(service: Service, arguments: Arguments) -> Message:
    size_bytes = arguments.get("size_bytes")
    job, record = service.snapshots.restore(
        arguments["snapshot"], service.repository(arguments), arguments["volume"],
        None if size_bytes is None else int(size_bytes), arguments.get("provisioning"),
        int(arguments.get("processes", 0)), _seconds(arguments),
    )  # fmt: skip
    return {"job": job, "volume": service.volumes.describe(record)}


def _delete_snapshot(service: Service, arguments: Arguments) -> Message:
    service.snapshots.delete(arguments["snapshot"], service.repository(arguments), _seconds(arguments))
    return {}


def _collect(service: Service, arguments: Arguments) -> Message:
    repository, dry_run = service.repository(arguments), bool(arguments.get("dry_run", False))
    return {"job": service.snapshots.of_repository("gc", repository, node=service.settings.node, dry_run=dry_run)}


def _audit(service: Service, arguments: Arguments) -> Message:
    repository = service.repository(arguments)
    return {"job": service.snapshots.of_repository("audit", repository, node=service.settings.node)}


def _stats(service: Service, arguments: Arguments) -> Message:
    return {"job": service.snapshots.of_repository("stats", service.repository(arguments))}


def _job(service: Service, arguments: Arguments) -> Message:
    return service.jobs.status(arguments["job"], float(arguments.get("wait_seconds", 0)))


CALLS: Final[Mapping[str, Callable[[Service, Arguments], Message]]] = {
    "engine.info": _info,
    "engine.stop": _stop,
    "volume.create": _create_volume,
    "volume.list": _list_volumes,
    "volume.show": lambda service, arguments: _volume(service, _named(service, arguments)),
    "volume.attach": _attach,
    "volume.detach": _detach,
    "volume.grow": _grow,
    "volume.note_formatted": _note_formatted,
    "volume.note_growing": _note_growing,
    "volume.delete": _delete_volume,
    "volume.clone": _clone,
    "volume.capacity": _capacity,
    "snapshot.create": _create_snapshot,
    "snapshot.create_group": _create_group,
    "snapshot.list": _list_snapshots,
    "snapshot.show": _show_snapshot,
    "snapshot.verify": _verify,
    "snapshot.restore": _restore,
    "snapshot.delete": _delete_snapshot,
    "repository.gc": _collect,
    "repository.check": _audit,
    "repository.stats": _stats,
    "job.status": _job,
    "metrics": lambda service, arguments: figures(service.volumes, service.sessions, service.keeper),
}


def answer(service: Service, message: Message, fds: Sequence[int] = ()) -> Message:
    """The answer to one call. Raises nothing: a defect is an `Internal` error, its traceback goes to the log."""
    try:
        call = CALLS.get(message.get("call", ""))
        if call is None:
            raise InvalidArgument(f"the engine has no call {message.get('call')!r}")
        arguments = message.get("args", {})
        if not isinstance(arguments, dict):
            raise InvalidArgument("a call's args must be an object")
        given = Arguments(arguments)
        given.fds = fds
        return {"result": call(service, given)}
    except StillframeError as error:
        return {"error": error.to_message()}
    except Exception as error:  # the outermost loop of a connection
        if is_of_the_disk(error):
            return {"error": disk_error(error, "the state folder's disk").to_message()}
        traceback.print_exc()
        return {"error": Internal(f"{message.get('call')}: {error}", "the engine's log has the details").to_message()}


def serve_connection(service: Service, connection: socket.socket) -> None:
    """Answer the calls of one connection, after a look at who is there."""
    with connection:
        try:
            try:
                check_peer(connection, "engine")
            except NotPermitted as error:
                messages.send(connection, {"error": error.to_message()})
                return
            while True:
                received = messages.receive(connection)
                if received is None:
                    return
                message, fds = received
                try:
                    result = answer(service, message, fds)
                finally:
                    messages.close_all(fds)
                messages.send(connection, result)
        except (OSError, StillframeError) as error:
            say("engine", f"a connection broke: {error}")


def _refuse_to_start(error: StillframeError) -> NoReturn:
    """Tell the keeper what hinders."""
    say("engine", f"error: {error.message}; {error.hint}")
    sys.exit(CANNOT_START + exit_code(error))


def main() -> NoReturn:
    kernel.set_process_name("sf-engine")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        given, keeper_fd = parse(sys.argv[1:])
        os.set_inheritable(keeper_fd, False)
        service = Service(given, keeper_fd)
        threading.Thread(target=vigil.watch, args=[service.keeper, service.transfer], name="vigil", daemon=True).start()
        service.resume()
        listener = listen(given.state / "run" / "engine.sock", "engine")
    except StillframeError as error:
        _refuse_to_start(error)
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        _refuse_to_start(disk_error(error, "the state folder's disk"))
    say("engine", f"ready on {given.state}")
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_connection, args=[service, connection], daemon=True).start()


if __name__ == "__main__":
    main()
