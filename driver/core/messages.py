"""Small JSON messages with file descriptors, over unix stream sockets: what the processes say to each other.

A message is a 4-byte big-endian length and that many bytes of JSON, an object with `v`, the protocol's version.
Descriptors travel with the length's bytes (SCM_RIGHTS, unix(7)). Any thread may use a socket that no other thread uses.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

from driver.core.errors import EngineUnavailable, StillframeError, Unsupported

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
FDS_MAX: Final = 16
_LENGTH: Final = struct.Struct(">I")

Message = dict[str, Any]


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message, with duplicates of `fds` (at most 16). Raises OSError if the peer is gone."""
    body = json.dumps({"v": VERSION, **message}, separators=(",", ":")).encode()
    if len(body) > MESSAGE_BYTES_MAX or len(fds) > FDS_MAX:
        raise Unsupported(f"a message of {len(body)} bytes and {len(fds)} descriptors is too large")
    data = _LENGTH.pack(len(body)) + body
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = sock.sendmsg([data], rights)
    if sent < len(data):
        sock.sendall(data[sent:])


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (close-on-exec, the caller's to close), or None at the stream's end.

    Raises Unsupported for a message that is too large, of another version, or no JSON object.
    """
    data, ancillary, _, _ = sock.recvmsg(_LENGTH.size, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % 4])
            fds.extend(numbers)
    try:
        if not data:
            return None
        data += _exactly(sock, _LENGTH.size - len(data))
        (length,) = _LENGTH.unpack(data)
        if length > MESSAGE_BYTES_MAX:
            raise Unsupported(f"the peer announced a message of {length} bytes")
        try:
            message = json.loads(_exactly(sock, length))
        except (ValueError, RecursionError) as error:
            raise Unsupported(f"the peer sent a message that is not JSON: {error}") from error
        if not isinstance(message, dict) or message.get("v") != VERSION:
            raise Unsupported(
                "the peer speaks another version of the protocol", "use the same version of Stillframe on both sides"
            )
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def call(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> tuple[Message, list[int]]:
    """Send a request and wait for its answer. Raises the StillframeError that the peer answered with."""
    try:
        with contextlib.suppress(BrokenPipeError):  # it may have told why before it closed
            send(sock, message, fds)
        received = receive(sock)
    except OSError as error:
        raise EngineUnavailable(f"the connection broke during {message.get('call')}: {error}") from error
    if received is None:
        raise EngineUnavailable(f"the peer closed the connection during {message.get('call')}")
    answer, answer_fds = received
    if "error" in answer:
        close_all(answer_fds)
        raise StillframeError.from_message(answer["error"])
    return answer, answer_fds


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever their state."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _exactly(sock: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        data = sock.recv(min(length - len(parts), 1 << 16))
        if not data:
            raise ConnectionResetError("the stream ended within a message")
        parts += data
    return bytes(parts)
