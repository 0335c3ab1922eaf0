"""A file system held still for a moment (FIFREEZE and FITHAW, include/uapi/linux/fs.h), and never for longer.

A frozen file system stops everybody who writes to it, so the freeze belongs to a guard: a process of its own (`python -m`
this module) that freezes, and thaws when it is told to, when its caller's end of the socket closes, which the kernel does
when the caller dies, or when the time is over. It does not die with its caller, and it takes no signal that can be ignored.
Should the guard die, the caller thaws. One case is left: both are killed at once, as a container's end does. Whoever starts
anew therefore calls `thaw` on every file system it had mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from fcntl import ioctl
from typing import Final

from driver.core.errors import DeviceError, FailedPrecondition, NotPermitted, StillframeError, Unsupported
from driver.host import kernel

_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878

_START_SECONDS: Final = 30.0
"""For the guard's start and for writing back what is dirty, beside the time that the caller gives."""
_THAW_SECONDS: Final = 30.0

_FROZEN: Final = b"frozen"
_REFUSED: Final = b"refused "
_THAW: Final = b"thaw"
_IN_TIME: Final = b"in time"
_LATE: Final = b"late"


def freeze(fd: int) -> None:
    """Hold the file system of `fd` still until `thaw`: whole on its device, writers wait. Raises OSError (EBUSY: it is)."""
    ioctl(fd, _FIFREEZE, 0)


def thaw(where: int | str) -> bool:
    """Let the file system of a descriptor or a path go on; whether it was frozen. Raises OSError."""
    if isinstance(where, str):
        fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return thaw(fd)
        finally:
            os.close(fd)
    try:
        ioctl(where, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


@contextlib.contextmanager
def frozen(path: str, seconds: float) -> Iterator[None]:
    """Hold the file system at `path` still for the length of the block, `seconds` at most. Any thread.

    What the block writes to it waits for the thaw. Raises FailedPrecondition when the block ends if it was let go before,
    as the time was over: what the block did is not of one moment. Raises it at the start if somebody else froze it,
    Unsupported if it cannot be frozen, NotPermitted without CAP_SYS_ADMIN, DeviceError if it is dead or its dirty data is
    not written back in time.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _translated(path, error.errno) from error
    try:
        with _started(fd, path, seconds) as (guard, connection):
            try:
                yield
            finally:
                held = _release(fd, guard, connection)
        if not held:
            raise FailedPrecondition(
                f"{path} was held still for at most {seconds:g} s and let go before the work was done", "allow it more time"
            )
    finally:
        os.close(fd)


@contextlib.contextmanager
def _started(fd: int, path: str, seconds: float) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A guard that has frozen. It is never killed before it says so: a freeze that is under way outlives it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            command = [sys.executable, "-m", "driver.host.freeze", str(fd), str(theirs.fileno()), str(seconds)]
            guard = subprocess.Popen(
                command, pass_fds=(fd, theirs.fileno()), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        ours.settimeout(_START_SECONDS + seconds)
        try:
            said = ours.recv(64)
        except TimeoutError:
            raise DeviceError(f"{path} could not be held still within {_START_SECONDS + seconds:g} s") from None
        if said != _FROZEN:
            guard.wait()
            if not said.startswith(_REFUSED):
                thaw(fd)
                raise DeviceError(f"{path} cannot be held still: its guard ended with {guard.returncode}")
            raise _translated(path, int(said.removeprefix(_REFUSED)))
        yield guard, ours


def _release(fd: int, guard: subprocess.Popen[bytes], connection: socket.socket) -> bool:
    """Have the guard thaw, or thaw in its place if it is dead; whether it was frozen until now."""
    connection.settimeout(_THAW_SECONDS)
    said = b""
    with contextlib.suppress(OSError):
        connection.send(_THAW)
    with contextlib.suppress(OSError):
        said = connection.recv(64)
    if said in (_IN_TIME, _LATE):
        guard.wait()
        return said == _IN_TIME
    guard.kill()
    guard.wait()
    return thaw(fd)


def _translated(path: str, number: int | None) -> StillframeError:
    message = f"{path} cannot be held still: {os.strerror(number or 0)}"
    if number == errno.EBUSY:
        return FailedPrecondition(message, f"somebody froze it; if nobody will thaw it: fsfreeze --unfreeze {path}")
    if number in (errno.EOPNOTSUPP, errno.ENOTTY):
        return Unsupported(message, "use ext4 or xfs")
    if number == errno.EPERM:
        return NotPermitted(message, "run it as root with CAP_SYS_ADMIN")
    return DeviceError(message, "the kernel says more in: dmesg")


def _guard(fd: int, connection: socket.socket, seconds: float) -> None:
    """The guard's life. What is dirty is written back first, as writers wait while the freeze does it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        kernel.syncfs(fd)
        if _readable(connection, 0.0):
            return  # the caller is gone
        freeze(fd)
    except OSError as error:
        connection.send(_REFUSED + str(error.errno).encode())
        return
    in_time = held = False
    try:
        connection.send(_FROZEN)
        in_time = _readable(connection, seconds)
    finally:
        held = thaw(fd)
    if in_time:
        connection.recv(64)  # a message that is left unread at the end would reset the connection, and our answer with it
    connection.send(_IN_TIME if in_time and held else _LATE)


def _readable(connection: socket.socket, seconds: float) -> bool:
    """Whether the caller says something, or ends, within the time."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as _connection, contextlib.suppress(OSError):
        _guard(int(sys.argv[1]), _connection, float(sys.argv[3]))
