"""What claims and VolumeSnapshots are told by events, and when. Pure: `herald` looks, writes and remembers.

There is one Event object for each object and reason, which is written anew as the work goes on: at most once in ten seconds,
and only when its text has changed. Its annotation has the figures for programs (`kubectl stillframe`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from driver.core.sizes import format_size
from driver.rpc.names import parse_handle
from driver.rpc.progress import Kind, Stage, Work

PROGRESS: Final = "stillframe.io/progress"
"""Annotation of an event: {"stage", "done_bytes", "total_bytes", "uploaded_bytes"}."""
UPLOADING: Final = "SnapshotUploading"
UPLOADED: Final = "SnapshotUploaded"
FAILED: Final = "SnapshotFailed"
RESTORING: Final = "VolumeRestoring"
RESTORED: Final = "VolumeRestored"
_REASONS: Final[Mapping[tuple[Kind, Stage], str]] = {
    (Kind.UPLOAD, Stage.RUNNING): UPLOADING,
    (Kind.UPLOAD, Stage.DONE): UPLOADED,
    (Kind.UPLOAD, Stage.FAILED): FAILED,
    (Kind.RESTORE, Stage.RUNNING): RESTORING,
    (Kind.RESTORE, Stage.DONE): RESTORED,
}
_SNAPSHOTS: Final = "snapshot.storage.k8s.io/v1"
_PROVISIONED: Final = "pvc-"
"""What csi-provisioner puts before a claim's uid to name its volume."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Event:
    """What an object is to be told. `name` is that of the Event object, the same for the same subject and reason."""

    about: Subject
    reason: str
    message: str
    is_warning: bool = False
    progress: str = ""

    @property
    def name(self) -> str:
        key = f"{self.about.uid} {self.about.kind} {self.reason}"
        return f"{self.about.name[:200]}.{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Content:
    """A VolumeSnapshotContent: the snapshot's handle, and the VolumeSnapshot that has it."""

    handle: str
    snapshot: Subject


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim, and the handle of its volume, if it has one."""

    subject: Subject
    volume: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """Whom a work is told to."""

    snapshot: Subject | None
    claim: Subject | None


def claim_of(namespace: str, name: str, uid: str, volume: str = "") -> Claim:
    return Claim(Subject("v1", "PersistentVolumeClaim", namespace, name, uid), volume)


def snapshot_of(namespace: str, name: str, uid: str) -> Subject:
    return Subject(_SNAPSHOTS, "VolumeSnapshot", namespace, name, uid)


def text(work: Work) -> str:
    """What is told of it."""
    percent = 100 * work.done // max(1, work.total)
    left = f"{percent} %, {format_size(max(0, work.total - work.done))} left"
    match work.kind, work.stage:
        case Kind.RESTORE, Stage.DONE:
            return f"restored: {format_size(work.total)}"
        case Kind.RESTORE, _:
            return f"restoring: {left}"
        case _, Stage.RUNNING:
            return f"uploading: {left}"
        case _, Stage.DONE:
            return f"uploaded: {format_size(work.uploaded)} in {work.requests} requests"
    fix = f"{work.fix}; then " if work.fix else ""
    why = work.message or "no reason is known"
    return f"failed: {why}; what to do: {fix}delete this VolumeSnapshot and take another one. The volume is unharmed"


def about(work: Iterable[Work], contents: Iterable[Content], claims: Iterable[Claim]) -> dict[str, About]:
    """By the work's id, whom it is told to; nothing of works that are nobody's: clones, and what a command began."""
    snapshots = {content.handle: content.snapshot for content in contents}
    by_volume, by_name = {}, {}
    for claim in claims:
        by_name[_PROVISIONED + claim.subject.uid] = claim.subject
        if claim.volume:
            by_volume[claim.volume] = claim.subject
    found = {}
    for item in work:
        if item.kind is Kind.RESTORE:
            known = About(None, by_name.get(item.id))
        else:
            snapshot = snapshots.get(item.id)
            known = About(snapshot, by_volume.get(item.volume) if snapshot is not None else None)
        if known != About(None, None):
            found[item.id] = known
    return found


def events(work: Work, told: About) -> list[Event]:
    """What there is to tell of it."""
    reason = _REASONS.get((work.kind, work.stage))
    if reason is None:
        return []
    message, is_warning, progress = text(work), work.stage is Stage.FAILED, _figures(work)
    found = []
    if told.snapshot is not None:
        found.append(Event(told.snapshot, reason, message, is_warning, progress))
        message = f"snapshot {told.snapshot.name} {message}"
    if told.claim is not None:
        found.append(Event(told.claim, reason, message, is_warning, progress))
    return found


def _figures(work: Work) -> str:
    shown = {"stage": work.stage.value, "done_bytes": work.done, "total_bytes": work.total, "uploaded_bytes": work.uploaded}
    return json.dumps(shown)


def unheard(running: Iterable[Work], heard: Iterable[Work]) -> list[Work]:
    """The uploads that were running and of which no node says anything any more: their repository knows what became of
    them."""
    ids = {item.id for item in heard}
    return [item for item in running if item.kind is Kind.UPLOAD and item.id not in ids]


def given_up(running: Iterable[Work], heard: Iterable[Work], answered: Collection[str]) -> list[str]:
    """The ids of the restores that were running and of which their nodes, which have answered, say nothing any more: they
    failed. The provisioner tells the claim why."""
    ids = {item.id for item in heard}
    return [
        item.id for item in running
        if item.kind is Kind.RESTORE and item.id not in ids and parse_handle("volume", item.volume).where in answered
    ]  # fmt: skip
