"""`stillframe csi`: make CSI calls by hand, as kubelet and the sidecars make them."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click
import grpc
from google.protobuf import json_format

from csi import csi_pb2
from driver.cli.context import Context, pass_context
from driver.core.errors import EngineUnavailable, FailedPrecondition, InvalidArgument

_SERVICES: Final = ("Identity", "Controller", "GroupController", "Node")


def methods() -> dict[str, Any]:
    """The descriptors of all calls by name; no two services have one of the same name."""
    found: dict[str, Any] = {}
    for service in _SERVICES:
        found |= dict(csi_pb2.DESCRIPTOR.services_by_name[service].methods_by_name.items())
    return found


@click.command()
@click.argument("call")
@click.argument("request", default="{}")
@click.option("--endpoint", default="unix:///run/stillframe/csi.sock", show_default=True, help="Where CSI is served.")
@click.option("--timeout", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait.")
@pass_context
def csi(context: Context, call: str, request: str, endpoint: str, timeout: float) -> None:
    """Make a CSI call, such as NodeGetInfo, with a REQUEST in JSON ("-": standard input), and print the answer in JSON.

    Field names are the specification's: '{"volume_id": "…", "staging_target_path": "/…"}'.
    """
    known = methods()
    if call not in known:
        raise InvalidArgument(f"CSI has no call {call!r}", f"it has {', '.join(sorted(known))}")
    method = known[call]
    message = getattr(csi_pb2, method.input_type.name)()
    try:
        json_format.Parse(sys.stdin.read() if request == "-" else request, message)
    except json_format.ParseError as error:
        raise InvalidArgument(f"the request is no {method.input_type.name}: {error}", "see csi/csi.proto") from None
    answer_type = getattr(csi_pb2, method.output_type.name)
    with grpc.insecure_channel(endpoint) as channel:
        path = f"/{method.containing_service.full_name}/{method.name}"
        ask = channel.unary_unary(
            path, request_serializer=type(message).SerializeToString, response_deserializer=answer_type.FromString
        )
        try:
            answer = ask(message, timeout=timeout)
        except grpc.RpcError as error:
            raise _translated(endpoint, error) from None
    text = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    click.echo(json.dumps(text, indent=1, ensure_ascii=False))


def _translated(endpoint: str, error: Any) -> Exception:
    code = error.code().name
    if code == "UNAVAILABLE" and "connect" in str(error.details()).lower():
        return EngineUnavailable(f"nobody serves CSI at {endpoint}", "start it: stillframe node --standalone")
    return FailedPrecondition(f"{code}: {error.details()}")
