"""What each kind of job is told, checked. `repository` is a name in repositories.toml. Pure; any thread."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from driver.core.errors import InvalidArgument
from driver.core.sizes import CHUNK_BYTES, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN
from driver.transfer.records import Id, Named, Text, Time

DESCRIPTORS: Final = {"send": 2, "clone": 2, "restore": 1, "verify": 0, "gc": 0, "audit": 0, "stats": 0}
"""Kinds with a process of their own, and the descriptors that each takes: pack buffers and spool file (clone: and the new
volume's backing file); backing file."""
OF_SESSIONS: Final = ("send", "clone")
"""Kinds that go on where a process of theirs died."""


class OfRepository(msgspec.Struct, frozen=True):
    """check, list, stats: the repository as a whole. Small jobs but `begin` may have `seconds`, for which who asks waits."""

    repository: Text
    seconds: float | None = None


class OfSnapshot(msgspec.Struct, frozen=True):
    """show, verify, restore: one snapshot."""

    repository: Text
    snapshot: Id


class Withdraw(msgspec.Struct, frozen=True):
    """Only what that volume's session on that node has announced, and not before `since`, is taken back."""

    repository: Text
    snapshot: Id
    volume: Id
    node: Text
    since: Time | None = None


class Settle(msgspec.Struct, frozen=True):
    """A session whose sender is dead, of that volume on that node, and what is to be said of its end."""

    repository: Text
    repository_id: Id
    snapshot: Id
    volume: Id
    node: Text
    reason: Text


class Delete(msgspec.Struct, frozen=True):
    """`only_writer`: the caller knows that no session can commit the snapshot any more."""

    repository: Text
    snapshot: Id
    only_writer: bool = False


class Ancestor(msgspec.Struct, frozen=True):
    """A snapshot that a session may build on, and the time of its cut, by which it is known for sure."""

    id: Id
    created: Time


class Collect(msgspec.Struct, frozen=True):
    """gc, audit: `node` is who asks. With `dry_run` nothing is removed."""

    repository: Text
    node: Text
    dry_run: bool = False


class Begin(msgspec.Struct, frozen=True):
    """A session that is about to cut its volume. The first of `parents` that can be is its parent."""

    repository: Text
    snapshot: Named
    volume: Named
    lineage: Id
    node: Text
    group: Text | None = None
    parents: Annotated[tuple[Ancestor, ...], Meta(max_length=4)] = ()


class Cut(msgspec.Struct, frozen=True):
    """A snapshot and the time of its cut."""

    id: Id
    name: Text
    created: Time


class Volume(msgspec.Struct, frozen=True):
    """A volume as it was at the cut."""

    id: Id
    name: Text
    size_bytes: Annotated[int, Meta(ge=VOLUME_BYTES_MIN, le=VOLUME_BYTES_MAX, multiple_of=CHUNK_BYTES)]
    logical_block_size: Literal[512, 4096]


class Seen(msgspec.Struct, frozen=True):
    """What `begin` saw in the session's repository just before: its `repository_id`, and the parent's manifest.json."""

    parent: str | None


class Send(msgspec.Struct, frozen=True):
    """A session to upload. `repository_id` is that of the repository it was begun in. A rate of 0 is no limit; the file at
    `statistics_path`, if any, goes into the manifest. What the session does not send is the `parent`'s. `pending_chunks` is
    how many chunks it has to read, for the progress. Whether the store honours conditional PUTs is found out if it is not
    told. What the supervisor does not add as `seen`, the sender looks at itself."""

    repository: Text
    repository_id: Id
    snapshot: Cut
    volume: Volume
    lineage: Id
    node: Text
    upload_rate_bytes: Annotated[int, Meta(ge=0)] = 0
    statistics_path: str | None = None
    group: Text | None = None
    parent: Ancestor | None = None
    pending_chunks: Annotated[int, Meta(ge=0)] = 0
    conditional_put: bool | None = None
    seen: Seen | None = None


class Clone(msgspec.Struct, frozen=True):
    """A session to copy into another volume."""

    size_bytes: Annotated[int, Meta(ge=VOLUME_BYTES_MIN, le=VOLUME_BYTES_MAX, multiple_of=CHUNK_BYTES)]


S = TypeVar("S", OfRepository, OfSnapshot, Withdraw, Settle, Delete, Collect, Begin, Send, Clone)


def parse(spec: dict[str, Any], kind: type[S]) -> S:
    """The job that `spec` describes. Raises InvalidArgument."""
    try:
        return msgspec.convert(spec, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the description of a {kind.__name__.lower()} job: {error}") from error


for _kind in (OfRepository, OfSnapshot, Withdraw, Settle, Delete, Begin, Collect, Send, Clone):
    msgspec.json.Decoder(_kind)  # msgspec learns a type at its first use, and crashes if two threads are the first
