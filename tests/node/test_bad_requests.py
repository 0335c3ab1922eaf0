"""Requests of every kind of wrongness, made from the descriptors: the answer has the right code, is never INTERNAL or
UNKNOWN, and nothing is a traceback."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
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
KEYS = ("provisioning", "logicalBlockSize", "processes", "mkfsOptions", "repository", "freeze", "onBufferFull")
UNSERVED = {"ControllerPublishVolume", "ControllerUnpublishVolume"}
"""There is nothing to attach; all else is served."""
LENIENT = {"snapshot_ids"}
"""Required, but of a group that is not there nothing can be listed."""
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
EXPECTED_OF = {
    "CreateVolume": {"RESOURCE_EXHAUSTED"},  # another node; a size that the disk has not
    "ControllerExpandVolume": {"RESOURCE_EXHAUSTED"},
    "ListVolumes": {"ABORTED"}, "ListSnapshots": {"ABORTED"}, "ControllerListVolumeHealth": {"ABORTED"},  # tokens
}  # fmt: skip
_PROTO = Path(__file__).resolve().parents[2] / "csi" / "csi.proto"
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


def required() -> set[str]:
    """The full names of the fields that csi.proto says are required, whatever the driver can do."""
    found, inside, above = set(), ["csi.v1"], ""
    for line in _PROTO.read_text().splitlines():
        if line.endswith("{"):
            opened = re.match(r"\s*message (\w+) \{", line)
            inside.append(opened[1] if opened else "")
        elif line.strip() == "}":
            inside.pop()
        elif (field := re.match(r"\s*(?:repeated )?[\w.<>, ]+ (\w+) = \d+[^;]*;(.*)", line)) and re.search(
            r"// Required[.;] ?(?!with)", field[2] if "//" in field[2] else above
        ):
            found.add(".".join([*(name for name in inside if name), field[1]]))
        above = line.strip() if line.strip().startswith("//") else ""
    return found


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
                yield f"{label}[{text[:9]!r}]", on(functools.partial(put_pair, field, text, text))
            for key in KEYS:
                for text in ("", "x", "'", "-1", "ü" * 64):
                    yield f"{label}[{key}] = {text!r}", on(functools.partial(put_pair, field, key, text))
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


def put_pair(field: Any, key: str, text: str, at: Any) -> None:
    getattr(at, field.name)[key] = text


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
    cases: list[tuple[str, Spoil]] = [("nothing", lambda copy: None), *wrongs(base)]
    needed = {name.rpartition(".")[2] for name in required() if name.startswith(f"{kind.DESCRIPTOR.full_name}.")} - LENIENT
    for what, spoil in cases:
        request: Any = kind()
        request.CopyFrom(base)
        if method in ("CreateVolume", "CreateSnapshot", "CreateVolumeGroupSnapshot"):
            request.name = f"made-{new_id()}"
        spoil(request)
        code, details = "OK", ""
        try:
            call(request, timeout=150)
        except grpc.RpcError as error:
            code, details = error.code().name, str(error.details())
            assert details, f"{what}: {code} without a word"
        allowed = EXPECTED | EXPECTED_OF.get(method, set()) if method not in UNSERVED else {"UNIMPLEMENTED"}
        if what.removesuffix(" missing") in needed and method not in UNSERVED:
            allowed = {"INVALID_ARGUMENT"}
        assert code in allowed, f"{what}: {code}: {details}"
    assert len(cases) > 1 or not kind.DESCRIPTOR.fields
    assert "Traceback" not in one.log.read_text()
    one.unmount_all()


@pytest.mark.parametrize(("service", "method"), METHODS, ids=[f"{service}.{method}" for service, method in METHODS])
def test_a_field_of_a_wrong_type_is_as_good_as_missing(one: Plugin, service: str, method: str) -> None:
    """Every field once with the bytes of another type: what that is to protobuf, an unknown field, or no message at all."""
    kind = getattr(csi_pb2, csi_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type.name)
    ask: Any = one.channel.unary_unary(f"/csi.v1.{service}/{method}")  # type: ignore[union-attr]
    base: Any = sound(one, kind)
    for field in kind.DESCRIPTOR.fields:
        for wire in ([0, b"\x07"], [1, b"\x07" * 8], [2, b"\x03\xff\xff\xff"], [5, b"\x07" * 4]):
            request: Any = kind()
            request.CopyFrom(base)
            request.ClearField(field.name)
            if method in ("CreateVolume", "CreateSnapshot", "CreateVolumeGroupSnapshot") and field.name != "name":
                request.name = f"made-{new_id()}"
            number, body = wire
            assert isinstance(number, int) and isinstance(body, bytes)
            tag = field.number << 3 | number
            varint = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
            try:
                ask(request.SerializeToString() + varint + body, timeout=150)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.INTERNAL:  # gRPC's own word for what is no message
                    assert "deserializing" in str(error.details()), error
                    with pytest.raises(Exception):  # noqa: B017
                        kind.FromString(request.SerializeToString() + varint + body)
                else:
                    assert error.code() is not grpc.StatusCode.UNKNOWN, error
    one.unmount_all()


def test_bytes_that_are_no_message_are_refused(one: Plugin) -> None:
    channel: Any = one.channel
    for method in ("/csi.v1.Controller/CreateVolume", "/csi.v1.Node/NodeStageVolume"):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(method)(b"\xff" * 100, timeout=150)
    probe = csi_pb2.ProbeRequest()
    assert one.identity.Probe(probe).ready.value
