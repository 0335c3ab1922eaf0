"""What may stand in a log: generic over every request and answer of CSI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from csi import csi_pb2
from driver.rpc import logs

MARK = "TOP-SECRET"
TYPES = sorted(
    {name for service in csi_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods
     for name in (method.input_type.name, method.output_type.name)}
)  # fmt: skip


def fill(message: Any, depth: int = 0) -> None:
    """Every field set; strings in secret fields are the mark, others say what they are."""
    for field in message.DESCRIPTOR.fields:
        text = MARK if logs.is_secret(field) else f"<{field.name}>"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[text] = text
        elif field.message_type is not None:
            if depth < 4:
                inner = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
                inner.SetInParent()
                fill(inner, depth + 1)
        elif field.cpp_type == field.CPPTYPE_STRING:
            if field.is_repeated:
                getattr(message, field.name).append(text)
            else:
                setattr(message, field.name, text)


@pytest.mark.parametrize("name", TYPES)
def test_no_secret_is_in_what_is_logged(name: str) -> None:
    message = getattr(csi_pb2, name)()
    fill(message)
    text = json.dumps(logs.strip(message))
    assert MARK not in text
    if MARK in str(message):
        assert logs.STRIPPED in text
    plain = [field.name for field in message.DESCRIPTOR.fields if field.cpp_type == field.CPPTYPE_STRING
             and field.message_type is None and not field.containing_oneof]  # fmt: skip
    for field in plain:
        assert f"<{field}>" in text


def test_the_specification_marks_some() -> None:
    with_secrets = [name for name in TYPES if "secrets" in getattr(csi_pb2, name).DESCRIPTOR.fields_by_name]
    assert len(with_secrets) > 10
    for name in with_secrets:
        assert logs.is_secret(getattr(csi_pb2, name).DESCRIPTOR.fields_by_name["secrets"])


@pytest.mark.parametrize("said", [
    "from driver.rpc import logs; logs.configure(); logs.log().info('unread')",
    "from driver.host.log import say; say('keeper', 'unread')",
], ids=["a plugin's", "the engine's"])  # fmt: skip
def test_a_log_that_nobody_reads_stops_nothing(said: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-c", f"{said}; print('alive')"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, check=False)
    finally:
        os.close(writer)
    assert done.stdout == b"alive\n"
