"""Listening unix sockets: mode 0600, in a folder of mode 0700; a dead predecessor's is replaced at once. Any thread."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Final

from driver.core.errors import FailedPrecondition, InvalidArgument, NotPermitted

_BACKLOG: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred, unix(7)


def listen(path: Path, what: str) -> socket.socket:
    """A listening socket at `path`, where clients find the old one or the new one at any moment.

    Raises FailedPrecondition if another `what` listens there, InvalidArgument if the path cannot be a socket's.
    """
    beside = path.with_name(f"{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            if path.exists() and other.connect_ex(str(path)) == 0:
                raise FailedPrecondition(f"another {what} listens at {path}", "stop it first")
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        listener.bind(str(beside))
        beside.chmod(0o600)
        listener.listen(_BACKLOG)
        os.rename(beside, path)
    except OSError as error:
        listener.close()
        raise InvalidArgument(f"cannot listen at {path}: {error}", "use a state folder with a short path") from error
    except FailedPrecondition:
        listener.close()
        raise
    return listener


def check_peer(connection: socket.socket, what: str) -> None:
    """Raises NotPermitted if the other side runs neither as root nor as us."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(credentials)[1] not in (0, os.geteuid()):
        raise NotPermitted(f"only root may speak to the {what}")
