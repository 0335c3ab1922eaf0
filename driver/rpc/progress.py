"""What a node is uploading and restoring, and how far it is: a call of our own beside CSI, which has no word for progress.

The controller plugin makes it over the connection that it has to node plugins anyway. A node plugin that is older does not
know it (UNIMPLEMENTED): nothing is told of its work then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import grpc
import msgspec
from google.protobuf import json_format, struct_pb2

from driver.core.errors import StillframeError
from driver.rpc.errors import code_of, text_of

METHOD: Final = "Work"
PATH: Final = f"/stillframe.v1.Progress/{METHOD}"


class Kind(StrEnum):
    UPLOAD = "upload"
    RESTORE = "restore"


class Stage(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Work:
    """An upload (`id` is the snapshot's handle) or a restore (`id` is the volume's name). `volume` is the volume's handle.

    Sizes in bytes: `done` of `total` is the volume's, `uploaded` what the store got of it, in so many requests. `message`
    and `fix` say why it failed.
    """

    kind: Kind
    id: str
    volume: str
    stage: Stage
    done: int = 0
    total: int = 0
    uploaded: int = 0
    requests: int = 0
    message: str = ""
    fix: str = ""


def pack(found: Sequence[Work]) -> struct_pb2.Struct:
    """The answer. Sizes are doubles on the way: exact up to 2**53."""
    made = struct_pb2.Struct()
    made.update({"work": [asdict(item) for item in found]})
    return made


def unpack(answer: struct_pb2.Struct) -> list[Work]:
    """What `pack` made, also of another version: unknown fields and kinds are left out."""
    found = []
    for item in json_format.MessageToDict(answer).get("work", []):
        with contextlib.suppress(msgspec.ValidationError):
            found.append(msgspec.convert(item, Work, strict=False))
    return found


def asked_for(ids: Sequence[str]) -> struct_pb2.Struct:
    """The request: of these uploads and restores the end is wanted too, however long ago it was."""
    made = struct_pb2.Struct()
    made.update({"ids": list(ids)})
    return made


def handler(work: Callable[[Sequence[str]], Sequence[Work]]) -> grpc.GenericRpcHandler:
    """Serves the call. `work` gets the ids that were asked for; the StillframeErrors that it raises are answered."""

    def serve(request: struct_pb2.Struct, context: grpc.ServicerContext) -> struct_pb2.Struct:
        given: Mapping[str, Any] = json_format.MessageToDict(request)
        try:
            return pack(work([str(item) for item in given.get("ids", [])]))
        except StillframeError as error:
            context.abort(code_of(error), text_of(error))
            raise AssertionError("abort raises") from error

    method = grpc.unary_unary_rpc_method_handler(
        serve, struct_pb2.Struct.FromString, struct_pb2.Struct.SerializeToString
    )  # fmt: skip
    return grpc.method_handlers_generic_handler(PATH.split("/")[1], {METHOD: method})
