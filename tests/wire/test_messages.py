"""The message codec between our processes: descriptors, bounds, and bytes that are no message."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.core import messages
from driver.core.errors import DataCorrupt, EngineUnavailable, Internal, NotPermitted, StillframeError, Unsupported


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(150)
    theirs.settimeout(150)
    return ours, theirs


def test_a_message_arrives_with_its_descriptors() -> None:
    ours, theirs = pair()
    reading, writing = os.pipe()
    messages.send(ours, {"call": "put"}, [reading, writing])
    received = messages.receive(theirs)
    assert received is not None
    message, fds = received
    assert message["call"] == "put"
    os.write(fds[1], b"through")
    assert os.read(fds[0], 16) == b"through"
    assert not os.get_inheritable(fds[0])
    messages.close_all([reading, writing, *fds])


def test_errors_come_back_as_themselves() -> None:
    ours, theirs = pair()
    messages.send(theirs, {"error": DataCorrupt("a", "b").to_message()})
    with pytest.raises(DataCorrupt, match="a") as caught:
        messages.call(ours, {"call": "x"})
    assert caught.value.hint == "b"
    assert isinstance(StillframeError.from_message({"kind": "Unheard", "message": "x"}), Internal)


def test_a_peer_that_goes_is_said_to_have_gone() -> None:
    ours, theirs = pair()
    theirs.close()
    with pytest.raises(EngineUnavailable):
        messages.call(ours, {"call": "x"})


@pytest.mark.parametrize(
    "sent",
    [b"\xff\xff\xff\xff", b"\0\0\0\x03[1]", b"\0\0\0\x02{}", b"\0\0\0\x02\xff{", b"\0\1\0\0" + b"[" * 65536],
)
def test_what_is_no_message_is_refused(sent: bytes) -> None:
    ours, theirs = pair()
    theirs.sendall(sent)
    with pytest.raises(Unsupported):
        messages.receive(ours)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=20,
)  # fmt: skip


@given(JSON | st.dictionaries(st.just("v"), st.just(1)), st.integers(0, 3), st.binary(max_size=8))
def test_any_json_is_a_message_or_refused(content: object, cut: int, more: bytes) -> None:
    """Whole, cut short, and with something behind it."""
    body = json.dumps(content).encode()
    ours, theirs = pair()
    theirs.sendall((len(body).to_bytes(4, "big") + body + more)[: len(body) + 4 + len(more) - cut])
    theirs.close()
    with contextlib.suppress(Unsupported, ConnectionError):
        received = messages.receive(ours)
        assert received is not None
        assert received[0]["v"] == 1
    ours.close()


@given(st.binary(max_size=64))
def test_any_bytes_end_in_a_clear_error(sent: bytes) -> None:
    ours, theirs = pair()
    theirs.sendall(sent)
    theirs.close()
    with contextlib.suppress(Unsupported, ConnectionError):
        assert messages.receive(ours) is None or sent
    ours.close()


def test_a_refusal_is_heard_although_the_peer_has_closed() -> None:
    ours, theirs = socket.socketpair()
    messages.send(theirs, {"error": NotPermitted("only root may").to_message()})
    theirs.close()
    with ours, pytest.raises(NotPermitted):
        messages.call(ours, {"call": "anything"})


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("message", "count"), [({"text": "x" * messages.MESSAGE_BYTES_MAX}, 0), ({}, messages.FDS_MAX + 1)], ids=["bytes", "fds"]
)
def test_what_no_peer_would_take_is_not_sent(message: messages.Message, count: int) -> None:
    ours, theirs = pair()
    with ours, theirs, pytest.raises(Unsupported, match="too large"):
        messages.send(ours, message, [ours.fileno()] * count)
    ours, theirs = pair()
    with ours, theirs:
        theirs.sendall((messages.MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
        theirs.close()
        with pytest.raises(Unsupported, match="announced"):
            messages.receive(ours)


def test_a_message_that_ends_in_the_middle_is_none() -> None:
    for sent in (b"\0\0", b"\0\0\0\x09", b'\0\0\0\x09{"v":1}'):
        ours, theirs = pair()
        theirs.sendall(sent)
        theirs.close()
        with ours, pytest.raises(ConnectionError):
            messages.receive(ours)


def test_descriptors_of_what_is_refused_are_closed() -> None:
    ours, theirs = pair()
    with ours, theirs:
        before = descriptors()
        rights = array.array("i", [ours.fileno(), theirs.fileno()])
        theirs.sendmsg([b"\xff\xff\xff\xff"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(Unsupported):
            messages.receive(ours)
        assert descriptors() == before


def test_descriptors_that_come_with_an_error_are_closed() -> None:
    ours, theirs = pair()
    with ours, theirs:
        before = descriptors()
        messages.send(theirs, {"error": DataCorrupt("a").to_message()}, [ours.fileno()])
        with pytest.raises(DataCorrupt):
            messages.call(ours, {"call": "x"})
        assert descriptors() == before
