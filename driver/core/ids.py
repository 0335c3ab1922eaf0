"""Names and identifiers."""

from __future__ import annotations

import re
import uuid
from typing import Final

from driver.core.errors import InvalidArgument

SNAPSHOT_NAMESPACE: Final = uuid.UUID("5b1d3a52-5c1f-5d0e-9b7e-2f6c1f0a7e11")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def new_id() -> str:
    """A fresh random UUID in its canonical text form."""
    return str(uuid.uuid4())


def snapshot_id(name: str) -> str:
    """The UUIDv5 (RFC 9562, section 5.5) of a snapshot's name: the same name is the same snapshot."""
    return str(uuid.uuid5(SNAPSHOT_NAMESPACE, name))


def member_name(group: str, volume_id: str) -> str:
    """The name of a volume's snapshot in a group snapshot."""
    return f"{group}-{volume_id}" if len(group) <= 90 else f"group-{snapshot_id(group)}-{volume_id}"


def is_id(text: str) -> bool:
    """Whether `text` is a UUID in canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def check_name(what: str, name: str) -> str:
    """`name`, if it may name a `what` (a volume, a snapshot, a repository). Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot name a {what}",
            "use 1 to 128 letters, digits, dots, dashes and underscores, a letter or digit first",
        )
    return name
