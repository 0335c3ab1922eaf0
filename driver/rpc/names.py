"""The names by which an orchestrator knows volumes, snapshots and groups, and what they are to the engine. Pure.

Volume handles are `<node>:<uuid>`, snapshot handles `<repository>:<uuid>`, those of groups too; all at most 128 bytes.
"""

from __future__ import annotations

import unicodedata
import uuid
from dataclasses import dataclass
from typing import Final

from driver.core.errors import InvalidArgument, NotFound
from driver.core.ids import SNAPSHOT_NAMESPACE, check_name, is_id

DRIVER: Final = "csi.stillframe.io"
TOPOLOGY_KEY: Final = "topology.stillframe.io/node"
NAME_KEY: Final = "csi.stillframe.io/name"
"""In the volume_context of a listed volume: the engine's name for it, which is that of the PersistentVolume."""
MAKING_KEY: Final = "csi.stillframe.io/being-made"
"""There too, where the volume is still being made of a snapshot or another volume: it has no PersistentVolume yet."""
DEVICE_DEAD: Final = "DeviceDead"
"""Reason of a volume's health: whoever has it mounted gets errors for ever, until it is mounted anew."""
NO_SNAPSHOT: Final = "it was deleted, or never complete: take another one"
"""What to do where there is no snapshot of a handle."""
_HANDLES: Final = {
    "volume": "look at the volumeHandle of its PersistentVolume: it is <node>:<uuid>",
    "snapshot": "look at the snapshotHandle of its VolumeSnapshotContent: it is <repository>:<uuid>",
    "group snapshot": "look at the handle in its VolumeGroupSnapshotContent: it is <repository>:<uuid>",
}
NODE_NAME_MAX: Final = 63
NAME_BYTES_MAX: Final = 128
"""CSI 1.13, "Size Limits": of a string field that says nothing else."""


def node_id(name: str) -> str:
    """The node's name as handles and topology have it: hashed if it is longer than a label's value may be."""
    if not name or len(name) <= NODE_NAME_MAX:
        return name
    return str(uuid.uuid5(SNAPSHOT_NAMESPACE, f"node:{name}"))


def engine_name(name: str) -> str:
    """The engine's name for what the orchestrator calls `name`: the same, if the engine can have it, else a UUIDv5 of it.

    Raises InvalidArgument for an empty one, one of over 128 bytes, and one with control characters.
    """
    if not name:
        raise InvalidArgument("the name is missing")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidArgument(f"the name has {len(name.encode())} bytes; {NAME_BYTES_MAX} are allowed")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise InvalidArgument("the name has control characters")
    try:
        return check_name("volume", name)
    except InvalidArgument:
        return f"csi-{uuid.uuid5(SNAPSHOT_NAMESPACE, f'csi:{name}')}"


@dataclass(frozen=True, slots=True)
class Handle:
    """A volume's (`where` is its node) or a snapshot's (`where` is its repository)."""

    where: str
    id: str

    def __str__(self) -> str:
        return f"{self.where}:{self.id}"


def parse_handle(what: str, text: str) -> Handle:
    """That of a volume, a snapshot or a group snapshot. Raises InvalidArgument if there is none, NotFound if it is none of
    ours."""
    if not text:
        raise InvalidArgument(f"the {what} id is missing")
    where, _, number = text.rpartition(":")
    if not where or not is_id(number) or len(text.encode()) > NAME_BYTES_MAX:
        raise NotFound(f"there is no {what} {text[:NAME_BYTES_MAX]!r}: it is no id of this driver", _HANDLES[what])
    return Handle(where, number)


def group_handle(repository: str, group: str) -> str:
    """The handle of a group snapshot."""
    return f"{repository}:{uuid.uuid5(SNAPSHOT_NAMESPACE, f'group:{group}')}"
