"""The names of the objects in a repository, relative to its prefix; docs/format.md describes what they hold."""

from __future__ import annotations

import re
from typing import Final

REPOSITORY: Final = "stillframe.json"
PROBE: Final = "probe"
SNAPSHOTS: Final = "snapshots/"
LINEAGES: Final = "lineages/"
COLLECTIONS: Final = "snapshots/collections/"

_ID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_REGION: Final = re.compile(f"lineages/({_ID})/regions/({_ID})")
_DATA: Final = re.compile(f"lineages/({_ID})/(packs|regions)/{_ID}")
_SNAPSHOT: Final = re.compile(f"snapshots/({_ID})/([a-z]+)[.]json")


def pack(lineage: str, name: str) -> str:
    """The pack `name`, a UUID."""
    return f"lineages/{lineage}/packs/{name}"


def region(lineage: str, name: str) -> str:
    """The region index `name`, a UUID."""
    return f"lineages/{lineage}/regions/{name}"


def pending(snapshot: str) -> str:
    """What announces a snapshot in the making."""
    return f"snapshots/{snapshot}/pending.json"


def manifest(snapshot: str) -> str:
    """What commits a snapshot, or says that it never will be."""
    return f"snapshots/{snapshot}/manifest.json"


def tombstone(snapshot: str) -> str:
    """What deletes a snapshot."""
    return f"snapshots/{snapshot}/deleted.json"


def collection(name: str) -> str:
    """What a garbage collection, a UUID, shows of itself: below `snapshots/`, so that a listing of those must have it."""
    return f"{COLLECTIONS}{name}.json"


def is_region(key: str, lineage: str) -> bool:
    """Whether `key` is the key of a region index of that lineage."""
    match = _REGION.fullmatch(key)
    return match is not None and match[1] == lineage


def snapshot_of(key: str) -> tuple[str, str] | None:
    """The snapshot id and the kind (pending, manifest, deleted) that a key below `snapshots/` names."""
    match = _SNAPSHOT.fullmatch(key)
    return (match[1], match[2]) if match else None


def lineage_of(key: str) -> str | None:
    """The lineage of a pack or a region index; None for any other key."""
    match = _DATA.fullmatch(key)
    return match[1] if match else None
