"""`python -m driver.transfer.supervisor --state DIR`: does what needs a repository, for the engine service.

It answers calls on <state>/run/transfer.sock (`driver.core.messages`) by {"result": {...}} or {"error": {...}}:

    start   job, kind, spec + descriptors   -> {}
    status  job, wait_seconds               -> {state: running | done | failed, progress, result, error}
    cancel  job                             -> {} when its process is reaped
    forget  job                             -> {}; ended first if it runs
    list                                    -> {jobs: {id: {kind, state}}}

Small jobs (`driver.transfer.small`) run in threads here, large ones (`driver.transfer.job`) in processes that die with
this one. It holds no state that matters: whoever started a job starts it again. repositories.toml is read at each job.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from driver.core import messages, settings
from driver.core.errors import Internal, InvalidArgument, NotPermitted, StillframeError
from driver.core.messages import Message
from driver.host import kernel
from driver.host.log import say
from driver.host.sockets import check_peer, listen
from driver.transfer.jobs import Jobs, Spawner

SOCKET: Final = "run/transfer.sock"


def _start(jobs: Jobs, call: Message, fds: list[int]) -> Message:
    given = list(fds)
    fds.clear()
    jobs.start(str(call["job"]), str(call["kind"]), dict(call["spec"]), given)
    return {}


def _status(jobs: Jobs, call: Message, fds: list[int]) -> Message:
    return jobs.get(call["job"]).status(float(call.get("wait_seconds") or 0))


def _cancel(jobs: Jobs, call: Message, fds: list[int]) -> Message:
    jobs.get(call["job"]).cancel()
    return {}


def _forget(jobs: Jobs, call: Message, fds: list[int]) -> Message:
    jobs.forget(call["job"])
    return {}


def _list(jobs: Jobs, call: Message, fds: list[int]) -> Message:
    return {"jobs": jobs.list()}


CALLS: Final[dict[str, Callable[[Jobs, Message, list[int]], Message]]] = {
    "start": _start,
    "status": _status,
    "cancel": _cancel,
    "forget": _forget,
    "list": _list,
}


def answer(jobs: Jobs, call: Message, fds: list[int]) -> Message:
    """The answer to one call; takes over `fds`. Raises nothing."""
    try:
        name = call.get("call")
        if name not in CALLS:
            raise InvalidArgument(f"the transfer supervisor has no call {name!r}")
        try:
            return {"result": CALLS[name](jobs, call, fds)}
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"{name}: a wrong or missing argument: {error!r}") from error
    except StillframeError as error:
        return {"error": error.to_message()}
    except Exception as error:  # the outermost loop of a connection
        traceback.print_exc()
        return {"error": Internal(f"{call.get('call')}: {error!r}", "the engine's log has the details").to_message()}
    finally:
        messages.close_all(fds)


def serve_connection(jobs: Jobs, connection: socket.socket) -> None:
    """Answer the calls of one connection, after a look at who is there."""
    with connection:
        try:
            try:
                check_peer(connection, "transfer supervisor")
            except NotPermitted as error:
                messages.send(connection, {"error": error.to_message()})
                return
            while True:
                try:
                    received = messages.receive(connection)
                except StillframeError as error:
                    messages.send(connection, {"error": error.to_message()})
                    return
                if received is None:
                    return
                messages.send(connection, answer(jobs, *received))
        except OSError as error:
            say("transfer", f"a connection broke: {error}")


def accept(jobs: Jobs, listener: socket.socket) -> None:
    """A thread for each connection, for ever."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_connection, args=[jobs, connection], daemon=True).start()


def warm(state: Path) -> None:
    """Load what S3 needs before the first job does, if a repository needs it."""
    try:
        if any(item.url.startswith("s3:") for item in settings.repositories(state)):
            import driver.store.s3  # noqa: F401 (loads boto3)
    except StillframeError:
        pass  # the first job says it


def main(arguments: list[str] | None = None) -> NoReturn:
    """Until SIGTERM. One line on standard error and exit code 1 if it cannot start."""
    options = argparse.ArgumentParser(prog="stillframe-transfer", allow_abbrev=False)
    options.add_argument("--state", default=settings.state_folder())
    state = Path(options.parse_args(arguments).state).absolute()
    kernel.set_process_name("sf-transfer")
    kernel.no_core_dump()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spawner = Spawner()
    jobs = Jobs(state, spawner)
    path = state / SOCKET
    try:
        listener = listen(path, "transfer supervisor")
    except StillframeError as error:
        say("transfer", f"error: {error.message}; {error.hint}")
        sys.exit(1)
    threading.Thread(target=accept, args=[jobs, listener], name="accept", daemon=True).start()
    threading.Thread(target=warm, args=[state], name="warm", daemon=True).start()

    def stop(number: int, frame: object) -> None:
        path.unlink(missing_ok=True)
        jobs.kill()
        os._exit(0)  # threads may still wait for a store

    signal.signal(signal.SIGTERM, stop)
    spawner.run()


if __name__ == "__main__":
    main()
