"""The JSON objects of a repository: bytes in, frozen records out, and back. Pure; any thread.

Each is one JSON object with `kind`, `format`, `features` and `cipher`, and ends with `sha256`: the digest of all bytes
before `,"sha256"`. An object of a newer format, with a feature or cipher that this version does not know, is refused
(Unsupported); one that was altered or cut short, or whose fields are out of bounds, is DataCorrupt. Both name its key.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from driver.core.errors import DataCorrupt, Unsupported
from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, regions_of
from driver.store import layout

FORMAT: Final = 1
FEATURES: Final[frozenset[str]] = frozenset()
"""Feature flags that this version understands."""
CIPHER_NONE: Final = "none"
SMALL_BYTES_MAX: Final = 64 * 1024
MANIFEST_BYTES_MAX: Final = 8 * 1024 * 1024

_TAIL: Final = b',"sha256":"'
_TAIL_BYTES: Final = len(_TAIL) + 64 + len(b'"}\n')

Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=256)]
Time = Annotated[str, Meta(min_length=10, max_length=40)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Named(msgspec.Struct, frozen=True):
    """Something with an id and a name."""

    id: Id
    name: Text


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every object begins with."""

    kind: str = ""
    format: Annotated[int, Meta(ge=1)] = FORMAT
    features: tuple[str, ...] = ()
    cipher: str = CIPHER_NONE


class Repository(Head, frozen=True, kw_only=True):
    """stillframe.json: what makes a prefix a repository."""

    id: Id
    created: Time


class Pending(Head, frozen=True, kw_only=True):
    """pending.json: a session runs, or ran, on `node`; written anew every minute while it does."""

    snapshot: Named
    volume: Named
    lineage: Id
    parent: Id | None = None
    node: Text
    begun: Time
    heartbeat: Time
    group: Text | None = None


class RegionEntry(msgspec.Struct, frozen=True, array_like=True):
    """One region of a volume: its index object, and how many of its chunks hold data; or nothing if all of it is zero."""

    number: Annotated[int, Meta(ge=0, lt=2**14)]
    key: str | None = None
    size_bytes: Annotated[int, Meta(ge=0, lt=2**24)] = 0
    sha256: Digest | None = None
    stored_chunks: Annotated[int, Meta(ge=0, le=CHUNKS_PER_REGION)] = 0

    @property
    def is_zero(self) -> bool:
        return self.key is None


class Manifest(Head, frozen=True, kw_only=True):
    """manifest.json of a snapshot that is complete: every object it names is in the store."""

    snapshot: Named
    volume: Named
    lineage: Id
    parent: Id | None = None
    node: Text
    created: Time
    committed: Time
    size_bytes: Annotated[int, Meta(ge=VOLUME_BYTES_MIN, le=VOLUME_BYTES_MAX, multiple_of=CHUNK_BYTES)]
    logical_block_size: int
    regions: tuple[RegionEntry, ...]
    stored_chunks: Count
    zero_chunks: Count
    stored_bytes: Count
    uploaded_bytes: Count
    requests: Count
    statistics: dict[str, Any] | None = None
    group: Text | None = None


class Aborted(Head, frozen=True, kw_only=True):
    """manifest.json of a snapshot that can no longer be completed, and why."""

    snapshot: Id
    reason: Text
    aborted: Time


class Tombstone(Head, frozen=True, kw_only=True):
    """deleted.json: the snapshot is gone for its users; its objects are still protected for a while."""

    snapshot: Id
    deleted: Time


class Collection(Head, frozen=True, kw_only=True):
    """snapshots/collections/<id>.json: a garbage collection is at work, or died; written anew every few minutes."""

    id: Id
    node: Text
    begun: Time


KINDS: Final[dict[type[Head], str]] = {
    Repository: "repository", Pending: "pending", Manifest: "snapshot", Aborted: "aborted", Tombstone: "tombstone",
    Collection: "collection",
}  # fmt: skip
R = TypeVar("R", Repository, Pending, Manifest, Aborted, Tombstone, Collection)
_HINT: Final = (
    "the object was altered or cut short in the store; bring back an earlier version of it, if there is one; "
    "what comes next may lean on it: take the next snapshot with --full"
)
_NEWER: Final = "it was written by a newer version of Stillframe: use that"


def encode(record: Repository | Pending | Manifest | Aborted | Tombstone | Collection) -> bytes:
    """The object's bytes."""
    body = msgspec.json.encode(msgspec.structs.replace(record, kind=KINDS[type(record)]))[:-1]
    return body + _TAIL + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def decode(data: bytes, kind: type[R], key: str) -> R:
    """The record in `data`, the content of the object `key`. Raises DataCorrupt, Unsupported."""
    return _record(_checked(data, key), kind, key)


def decode_manifest(data: bytes, key: str) -> Manifest | Aborted:
    """The manifest in `data`, or the mark that there will be none. Raises DataCorrupt, Unsupported."""
    content = _checked(data, key)
    if _head(content, key).kind == "aborted":
        return _record(content, Aborted, key)
    return _check_manifest(_record(content, Manifest, key), key)


def corrupt(key: str, what: str) -> DataCorrupt:
    """The error for an object that is not what it should be."""
    return DataCorrupt(f"object {key} is corrupt: {what}", _HINT)


def missing(key: str) -> DataCorrupt:
    """The error for an object that another one names and that is not there."""
    return DataCorrupt(f"object {key} is missing", "something else deleted it: look at the store's lifecycle rules")


def _checked(data: bytes, key: str) -> bytes:
    """The JSON text, after its digest was checked."""
    body, tail = data[:-_TAIL_BYTES], data[-_TAIL_BYTES:]
    expected = _TAIL + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    if not hmac.compare_digest(tail, expected):
        raise corrupt(key, "its digest does not match its content")
    return data


def _head(data: bytes, key: str) -> Head:
    try:
        head = msgspec.json.decode(data, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt(key, str(error)) from error
    unknown = sorted(set(head.features) - FEATURES)
    if head.format != FORMAT:
        raise Unsupported(f"object {key} has format {head.format}; this version reads {FORMAT}", _NEWER)
    if unknown:
        raise Unsupported(f"object {key} uses unknown features: {', '.join(unknown)[:200]}", _NEWER)
    if head.cipher != CIPHER_NONE:
        raise Unsupported(f"object {key} is encrypted with {head.cipher[:40]!r}", _NEWER)
    return head


def _record(data: bytes, kind: type[R], key: str) -> R:
    head = _head(data, key)
    try:
        record = msgspec.json.decode(data, type=kind)
        _check_times(record)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise corrupt(key, str(error)) from error
    if head.kind != KINDS[kind]:
        raise corrupt(key, f"it is a {head.kind[:40]!r} record")
    return record


def _check_times(record: Head) -> None:
    for field in ("created", "committed", "begun", "heartbeat", "aborted", "deleted"):
        value = getattr(record, field, None)
        if value is not None and datetime.fromisoformat(value).tzinfo is None:
            raise ValueError(f"{field} has no time zone")


def _check_manifest(manifest: Manifest, key: str) -> Manifest:
    if manifest.logical_block_size not in (512, 4096):
        raise corrupt(key, f"a logical block size of {manifest.logical_block_size}")
    if [region.number for region in manifest.regions] != list(range(regions_of(manifest.size_bytes))):
        raise corrupt(key, "its regions are not those of a volume of its size")
    for region in manifest.regions:
        if region.key is None:
            if region.sha256 is not None or region.size_bytes or region.stored_chunks:
                raise corrupt(key, f"region {region.number} is zero and is not")
        elif region.sha256 is None or not layout.is_region(region.key, manifest.lineage):
            raise corrupt(key, f"region {region.number} has no index of this lineage")
    return manifest


for _kind in (Head, *KINDS):
    msgspec.json.Decoder(_kind)  # msgspec learns a type at its first use, and crashes if two threads are the first
