"""Requests of every kind of wrongness, made from the descriptors: the answer is never INTERNAL, UNKNOWN or a traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi import csi_pb2
from driver.core.ids import new_id
from driver.core.sizes import MIB
from tests.engines import engine
from tests.plugins import Plugin, mount_capability, plugin

SERVICES = ("Identity", "Controller", "GroupController", "Node")
METHODS = [
    (service, method.name) for service in SERVICES for method in csi_pb2.DESCRIPTOR.services_by_name[service].methods
]
STRINGS = ("", "x", "x" * 129, "x" * 70_000, "a\nb\0c", "../../etc/passwd", "/", "ü" * 64, "node:" + "0" * 36)
NUMBERS = (-1, 0, 1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)


@pytest.fixture(scope="module")
def one() -> Iterator[Plugin]:
    with engine() as made, plugin(made) as running:
        running.create("base", 64 * MIB)
        yield running


def sound(one: Plugin, kind: Any) -> Message:
    """A request with every field filled in such that the call gets as far as it can."""
    volume = one.create("base", 64 * MIB)
    request = kind()
    values = {
        "name": f"made-{new_id()}", "volume_id": volume, "source_volume_id": volume, "source_volume_ids": [volume],
        "snapshot_id": f"local:{new_id()}", "group_snapshot_id": f"local:{new_id()}",
        "snapshot_ids": [f"local:{new_id()}"], "staging_target_path": f"{one.folder}/staging/bad",
        "target_path": f"{one.folder}/pods/bad", "volume_path": f"{one.folder}/pods/bad", "node_id": "node",
        "volume_capability": mount_capability(), "volume_capabilities": [mount_capability()],
        "capacity_range": csi_pb2.CapacityRange(required_bytes=MIB, limit_bytes=64 * MIB),
    }  # fmt: skip
    for field in kind.DESCRIPTOR.fields:
        if field.name in values:
            value = values[field.name]
            if field.is_repeated:
                getattr(request, field.name).extend(value)
            elif field.message_type is not None:
                getattr(request, field.name).CopyFrom(value)
            else:
                setattr(request, field.name, value)
    return request  # type: ignore[no-any-return]


Spoil = Callable[[Any], None]


def wrongs(message: Message, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Spoil]]:
    """(what is wrong, how to make it so) for each field of `message`, which lies at `path` in a request."""

    def on(change: Callable[[Any], Any]) -> Spoil:
        def spoil(copy: Any) -> None:
            for name in path:
                copy = getattr(copy, name)
                if hasattr(copy, "add") and len(copy):
                    copy = copy[0]
            change(copy)

        return spoil

    for field in message.DESCRIPTOR.fields:
        label = ".".join((*path, field.name))
        yield f"{label} missing", on(functools.partial(clear, field))
        if field.message_type is None:
            for value in values_of(field):
                yield f"{label} = {str(value)[:12]!r}", on(functools.partial(put, field, value))
        elif field.message_type.GetOptions().map_entry:
            for text in STRINGS[:6]:
                yield f"{label}[{text[:9]!r}]", on(functools.partial(put_pair, field, text))
        else:
            yield f"{label} empty", on(functools.partial(put_empty, field))
            inner = getattr(message, field.name)
            inner = inner[0] if field.is_repeated and len(inner) else inner
            if isinstance(inner, Message) and len(path) < 4:
                yield from wrongs(inner, (*path, field.name))


def clear(field: Any, at: Any) -> None:
    at.ClearField(field.name)


def put(field: Any, value: Any, at: Any) -> None:
    if field.is_repeated:
        getattr(at, field.name).append(value)
    else:
        setattr(at, field.name, value)


def put_pair(field: Any, text: str, at: Any) -> None:
    getattr(at, field.name)[text] = text


def put_empty(field: Any, at: Any) -> None:
    if field.is_repeated:
        getattr(at, field.name).add()
    else:
        getattr(at, field.name).SetInParent()


def values_of(field: Any) -> tuple[Any, ...]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return STRINGS
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return (0, 99)
    if field.cpp_type in _INTEGERS:
        bits = 31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
        return tuple(number for number in NUMBERS if -(2**bits) <= number < 2**bits)
    return (True, False)


@pytest.mark.parametrize(("service", "method"), METHODS, ids=[f"{service}.{method}" for service, method in METHODS])
def test_no_bad_request_is_an_internal_error(one: Plugin, service: str, method: str) -> None:
    stub = {"Identity": one.identity, "Controller": one.controller, "GroupController": one.groups, "Node": one.node}[service]
    call = getattr(stub, method)
    kind = getattr(csi_pb2, csi_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type.name)
    base: Any = sound(one, kind)
    seen = 0
    cases: list[tuple[str, Spoil]] = [("nothing", lambda copy: None), *wrongs(base)]
    for what, spoil in cases:
        request: Any = kind()
        request.CopyFrom(base)
        if method in ("CreateVolume", "CreateSnapshot", "CreateVolumeGroupSnapshot"):
            request.name = f"made-{new_id()}"
        spoil(request)
        seen += 1
        try:
            call(request, timeout=20)
        except grpc.RpcError as error:
            code = error.code().name
            assert code not in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"), f"{what}: {code}: {error.details()}"
            assert code == "UNIMPLEMENTED" or error.details(), f"{what}: {code} without a word"
    assert seen == 1 or len(kind.DESCRIPTOR.fields) > 0
    assert "Traceback" not in one.log.read_text()
    one.unmount_all()


def test_bytes_that_are_no_message_are_refused(one: Plugin) -> None:
    channel: Any = one.channel
    for method in ("/csi.v1.Controller/CreateVolume", "/csi.v1.Node/NodeStageVolume"):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(method)(b"\xff" * 100, timeout=5)
    probe = csi_pb2.ProbeRequest()
    assert one.identity.Probe(probe).ready.value
