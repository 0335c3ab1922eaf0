"""One line of JSON for each call, and what may stand in it: no field that the specification marks as a secret. Any thread.

Lines that are logged during a call carry its request id, and the volume and snapshot that it is about; those that an answer
names are in the lines that follow it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from google.protobuf.message import Message

from csi import csi_pb2

STRIPPED: Final = "***stripped***"
_SUBJECTS: Final = ("volume_id", "source_volume_id", "snapshot_id", "group_snapshot_id", "name")
_MADE: Final = {"volume": ("volume_id",), "snapshot": ("snapshot_id",), "group_snapshot": ("group_snapshot_id",)}
"""What answers call the things that are made, and of these the fields that tell them."""
_SENSITIVE: Final = frozenset({"csi.v1.VolumeCapability.MountVolume.mount_flags"})
"""Not marked, but the specification says of it that it may be sensitive."""
_numbers = itertools.count(1)


class _Unread:
    """A stream that nobody may read any more: who reads a container's output can die before it, and its calls are served."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure(debug: bool = False) -> None:
    """JSON lines on standard error; they are lost, and nothing else, when that cannot be written to."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(_Unread(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def log() -> Any:
    """The logger of the calling thread."""
    return structlog.get_logger()


def bind(method: str, request: Message) -> None:
    """What all lines of this thread carry until the next call."""
    subjects: Mapping[str, Any] = {name: getattr(request, name) for name in _SUBJECTS if getattr(request, name, "")}
    if sources := list(getattr(request, "source_volume_ids", ())):
        subjects = {**subjects, "source_volume_ids": sources}
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request=next(_numbers), call=method.rpartition("/")[2], **subjects)


def bind_answer(answer: Message) -> None:
    """Have the lines that follow carry the ids of what the answer names too."""
    for made, names in _MADE.items():
        if made in answer.DESCRIPTOR.fields_by_name and answer.HasField(made):
            subject = getattr(answer, made)
            structlog.contextvars.bind_contextvars(**{name: getattr(subject, name) for name in names})


def strip(message: Message) -> dict[str, Any]:
    """The fields that are set, by name, nested, with secrets replaced."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if is_secret(field):
            found[field.name] = STRIPPED
        elif field.message_type is None:
            found[field.name] = list(value) if field.is_repeated else value
        elif field.message_type.GetOptions().map_entry:
            found[field.name] = {
                key: strip(item) if isinstance(item, Message) else item for key, item in value.items()
            }  # fmt: skip
        else:
            found[field.name] = [strip(item) for item in value] if field.is_repeated else strip(value)
    return found


def is_secret(field: Any) -> bool:
    """Whether a field's content must not be logged."""
    return bool(field.GetOptions().Extensions[csi_pb2.csi_secret]) or field.full_name in _SENSITIVE
