"""csi.proto and pluginregistration.proto against the published Go packages: both sides declare the same, entry by entry."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from csi import csi_pb2, pluginregistration_pb2
from tests.wire.descriptors import Table, table_of, table_of_module

MODULES = {"csi.v1": csi_pb2.DESCRIPTOR, "pluginregistration": pluginregistration_pb2.DESCRIPTOR}


@pytest.fixture(scope="module")
def published() -> dict[str, Table]:
    """The tables of the published packages, by protobuf package; the first run fetches and compiles them."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.skip("Go is not installed; it reads the published descriptors")
    helper = Path(__file__).parent / "csispec"
    run = subprocess.run([go, "run", "."], cwd=helper, stdout=subprocess.PIPE, timeout=1200, check=True)
    return {file.package: table_of(file) for file in FileDescriptorSet.FromString(run.stdout).file}


def differences(ours: Table, theirs: Table) -> dict[str, str]:
    return {
        entry: f"ours {ours.get(entry)!r}, theirs {theirs.get(entry)!r}"
        for entry in sorted(ours.keys() | theirs.keys())
        if ours.get(entry) != theirs.get(entry)
    }


@pytest.mark.parametrize("package", MODULES)
def test_our_descriptors_are_the_published_ones(package: str, published: dict[str, Table]) -> None:
    assert differences(table_of_module(MODULES[package]), published[package]) == {}


def part(container: Any, step: str) -> Any:
    """The element of a repeated field with that index or name, or the field of a message."""
    if hasattr(container, "DESCRIPTOR"):
        return getattr(container, step)
    return container[int(step)] if step.isdigit() else next(element for element in container if element.name == step)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("package", "csi.v2"),
        ("options go_package", "elsewhere"),
        ("message_type Volume name", "Disk"),
        ("message_type Volume field volume_id name", "id"),
        ("message_type Volume field volume_id number", 9),
        ("message_type Volume field volume_id type", FieldDescriptorProto.TYPE_BYTES),
        ("message_type Volume field volume_id label", FieldDescriptorProto.LABEL_REPEATED),
        ("message_type Volume field volume_id json_name", "id"),
        ("message_type Volume field volume_id options deprecated", True),
        ("message_type Volume field content_source type_name", ".csi.v1.Topology"),
        ("message_type VolumeCapability field mount oneof_index", 1),
        ("message_type VolumeCapability oneof_decl access_type name", "access"),
        ("message_type VolumeCapability nested_type AccessMode enum_type Mode value SINGLE_NODE_WRITER number", 9),
        ("message_type NodeGetVolumeStatsResponse reserved_range 0 start", 1),
        ("enum_type BlockMetadataType value FIXED_LENGTH name", "EVEN"),
        ("extension csi_secret number", 1061),
        ("service Identity method Probe name", "Ping"),
        ("service Identity method Probe input_type", ".csi.v1.Volume"),
        ("service Identity method Probe server_streaming", True),
    ],
)
def test_the_comparison_sees_a_change_of_any_kind(path: str, value: object) -> None:
    file = FileDescriptorProto()
    csi_pb2.DESCRIPTOR.CopyToProto(file)
    before = table_of(file)
    *way, last = path.split()
    setattr(functools.reduce(part, way, file), last, value)
    assert differences(before, table_of(file))


def test_the_comparison_sees_a_lost_mark() -> None:
    file = FileDescriptorProto()
    csi_pb2.DESCRIPTOR.CopyToProto(file)
    before = table_of(file)
    functools.reduce(part, ["message_type", "DeleteVolumeRequest", "field", "secrets"], file).ClearField("options")
    assert list(differences(before, table_of(file))) == [
        "message_type DeleteVolumeRequest.field secrets.options.[csi.v1.csi_secret]"
    ]


def secret_marks(file: FileDescriptor) -> dict[str, bool]:
    """By full name, whether a field is marked as secret."""
    return {
        f.full_name: f.GetOptions().Extensions[csi_pb2.csi_secret]
        for message in file.message_types_by_name.values()
        for f in message.fields
    }


def test_every_field_for_secrets_is_marked_and_no_other() -> None:
    marks = secret_marks(csi_pb2.DESCRIPTOR)
    marked = {name for name, mark in marks.items() if mark}
    assert marked == {name for name in marks if name.endswith(".secrets")}
    assert "csi.v1.NodeStageVolumeRequest.secrets" in marked
