"""How a new keeper takes everything over from a running one, while the devices are in use.

    new                                    old
    take_over {handover}             ──►   ends service, helpers, senders; the volumes are still served
                                     ◄──   state {handover, memory, volumes, processes} + lock; volume {…} + fds, …
    ready                            ──►   kills the volumes' processes and waits until they are dead
                                     ◄──   dead
    (forks its own)  taken           ──►   ends

Until `taken` the old keeper can go on: it starts its processes again when the new one closes the connection. If it dies
itself after `ready`, the new one goes on with what it has. What was in hand when a volume's process died is in its request
slots, as after any death (docs/datapath.md). Two processes of two keepers never serve one slot: its lock is held for life.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from driver.core import messages
from driver.core.errors import EngineUnavailable, FailedPrecondition, InvalidArgument, StillframeError, Unsupported
from driver.engine.kept import Process
from driver.host.sockets import check_peer
from driver.volume import layout

VERSION: Final = 1
"""Of these messages. A keeper of another one is refused, and the old one goes on."""
_SECONDS: Final = 60.0
_FIRST_SECONDS: Final = 2.0
"""A keeper waits no longer for the first word of a peer: it starts nothing again meanwhile."""
_FIELDS: Final = ("volume", "key", "name", "argument", "finished", "given_up", "deaths_in_all")


class PeerDied(EngineUnavailable):
    """The other side is gone without a word: a keeper that goes on says so before it closes the connection."""


@dataclass(slots=True)
class Holdings:
    """All that a keeper has: the lock of the state folder, descriptors by volume and role, processes to keep alive."""

    lock: int
    fds: dict[str, dict[str, int]] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)


def give(peer: socket.socket, holdings: Holdings) -> None:
    """Send everything and wait until the new keeper is ready. Raises EngineUnavailable, StillframeError. Keeper only."""
    processes = [{key: value for key, value in asdict(p).items() if key in _FIELDS} for p in holdings.processes]
    state = {
        "handover": VERSION, "memory": layout.VERSION, "volumes": len(holdings.fds), "processes": processes,
    }  # fmt: skip
    _send(peer, state, [holdings.lock])
    for volume, roles in holdings.fds.items():
        _send(peer, {"volume": volume, "roles": list(roles)}, list(roles.values()))
    expect(peer, "ready")


def ask(path: str) -> socket.socket | None:
    """A connection to the keeper that runs; None if there is none. Raises Unsupported, StillframeError."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(_SECONDS)
    try:
        peer.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        peer.close()
        return None
    _send(peer, {"call": "take_over", "handover": VERSION})
    return peer


def receive(peer: socket.socket) -> Holdings:
    """What the old keeper sends; descriptors are ours. Raises Unsupported if it is of a version that we cannot continue."""
    state, fds = _receive(peer)
    if (state.get("handover"), state.get("memory")) != (VERSION, layout.VERSION) or len(fds) != 1:
        messages.close_all(fds)
        raise Unsupported(
            f"the engine that runs hands over in version {state.get('handover')} with memory in version "
            f"{state.get('memory')}, this one takes {VERSION} and {layout.VERSION}; the one that runs goes on",
            "detach the volumes, stop it, and start this one",
        )
    holdings = Holdings(fds[0], processes=[Process(**process) for process in state["processes"]])
    for _ in range(state["volumes"]):
        message, fds = _receive(peer)
        holdings.fds[message["volume"]] = dict(zip(message["roles"], fds, strict=True))
    return holdings


def tell(peer: socket.socket, word: str) -> None:
    """Raises what the other side said why it does not listen any more, PeerDied if it said nothing."""
    try:
        messages.send(peer, {"call": word})
    except OSError:
        expect(peer, word)  # of which it has nothing to say


def expect(peer: socket.socket, word: str) -> None:
    """Wait for that word. Raises PeerDied, EngineUnavailable if the other side is silent, FailedPrecondition for another
    word, and what it says instead."""
    message, fds = _receive(peer)
    messages.close_all(fds)
    if message.get("call") != word:
        raise FailedPrecondition(f"the other engine says {message.get('call')!r} instead of {word!r}")


def admit(peer: socket.socket) -> None:
    """Hear what a peer wants. Raises NotPermitted, Unsupported, InvalidArgument."""
    peer.settimeout(_FIRST_SECONDS)
    check_peer(peer, "keeper")
    message, fds = _receive(peer)
    messages.close_all(fds)
    peer.settimeout(_SECONDS)
    if message.get("call") != "take_over":
        raise InvalidArgument(f"the keeper has no call {message.get('call')!r} here")
    if message.get("handover") != VERSION:
        raise Unsupported(
            f"the engine that runs hands over in version {VERSION}, not {message.get('handover')}; it goes on",
            "detach the volumes, stop it, and start the other",
        )


def refuse(peer: socket.socket, error: Exception) -> None:
    """Tell the other side why not, if it is still there."""
    told = error if isinstance(error, StillframeError) else FailedPrecondition(str(error))
    with contextlib.suppress(StillframeError):
        _send(peer, {"error": told.to_message()})


def _send(peer: socket.socket, message: Mapping[str, Any], fds: list[int] | None = None) -> None:
    try:
        messages.send(peer, dict(message), fds or [])
    except OSError as error:
        raise EngineUnavailable(f"the other engine is gone: {error}") from error


def _receive(peer: socket.socket) -> tuple[dict[str, Any], list[int]]:
    try:
        received = messages.receive(peer)
    except ConnectionResetError as error:
        raise PeerDied(f"the other engine is gone: {error}") from error
    except OSError as error:
        raise EngineUnavailable(f"the other engine does not answer: {error}") from error
    if received is None:
        raise PeerDied("the other engine closed the connection")
    if "error" in received[0]:
        messages.close_all(received[1])
        raise StillframeError.from_message(received[0]["error"])
    return received
