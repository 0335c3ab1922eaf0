"""The volumes of all nodes that can be asked, and which nodes cannot: ListVolumes must not answer in part.

Also a call of our own on the socket where the controller plugin serves CSI, for `stillframe controller orphans`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc
import msgspec
from google.protobuf import json_format, struct_pb2

from csi import csi_pb2
from driver.controller.nodes import Nodes
from driver.core.errors import FailedPrecondition
from driver.rpc.names import MAKING_KEY, NAME_KEY

_METHOD: Final = "Volumes"
_SERVICE: Final = "stillframe.v1.Inventory"
_NODE_SECONDS: Final = 20.0
_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A volume as its node lists it; `name` is the engine's for it. `is_made` is False while it is being restored."""

    handle: str
    name: str
    size_bytes: int
    is_made: bool = True


@dataclass(frozen=True, slots=True)
class Inventory:
    """`missing` are the nodes with a plugin's pod that did not answer, by their names in handles."""

    volumes: list[Listed]
    missing: list[str]


def listed(entries: Iterable[csi_pb2.ListVolumesResponse.Entry]) -> list[Listed]:
    """What ListVolumes answers."""
    found = []
    for volume in (entry.volume for entry in entries):
        known = volume.volume_context
        found.append(Listed(volume.volume_id, known.get(NAME_KEY, ""), volume.capacity_bytes, MAKING_KEY not in known))
    return found


def taken(nodes: Nodes) -> Inventory:
    """Ask all nodes, 20 s at most each. Any thread."""
    wanted = nodes.cluster.with_plugins()
    answers = nodes.ask_all(wanted, "ListVolumes", csi_pb2.ListVolumesRequest(), _NODE_SECONDS)
    volumes = listed(entry for answer in answers.values() for entry in answer.entries)
    return Inventory(volumes, [node for node in wanted if node not in answers])


def handler(nodes: Nodes) -> grpc.GenericRpcHandler:
    """Serves the call."""

    def serve(request: struct_pb2.Struct, context: grpc.ServicerContext) -> struct_pb2.Struct:
        made = struct_pb2.Struct()
        made.update(asdict(taken(nodes)))
        return made

    method = grpc.unary_unary_rpc_method_handler(
        serve, struct_pb2.Struct.FromString, struct_pb2.Struct.SerializeToString
    )  # fmt: skip
    return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})


def ask(endpoint: str) -> Inventory:
    """What the controller plugin at `endpoint` answers. Raises FailedPrecondition."""
    with grpc.insecure_channel(endpoint) as channel:
        call: Any = channel.unary_unary(
            f"/{_SERVICE}/{_METHOD}", request_serializer=struct_pb2.Struct.SerializeToString,
            response_deserializer=struct_pb2.Struct.FromString,
        )  # fmt: skip
        try:
            answer = call(struct_pb2.Struct(), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise FailedPrecondition(
                f"no controller plugin tells of volumes at {endpoint}: {error.code().name}: {error.details()}",
                "run this in the controller's pod: kubectl exec deploy/stillframe-controller -c controller -- "
                "stillframe controller orphans",
            ) from None
    return msgspec.convert(json_format.MessageToDict(answer), Inventory, strict=False)
