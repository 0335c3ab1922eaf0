"""What this node is uploading and restoring, for the controller plugin to tell. gRPC's threads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from driver.core.errors import StillframeError
from driver.node.here import Here
from driver.rpc.described import IN_THE_MAKING, READY
from driver.rpc.progress import Kind, Stage, Work

LATELY: Final = timedelta(minutes=5)
"""An upload whose cut was made since may have ended before anybody saw it begin: its end is told unasked."""


def is_wanted(session: dict[str, Any], ids: Sequence[str], now: datetime) -> bool:
    """Whether a session, as the engine describes it, is to be told of. Pure."""
    if session["state"] == IN_THE_MAKING or session["handle"] in ids:
        return True
    return bool(session["created"]) and now - datetime.fromisoformat(session["created"]) < LATELY


def upload(session: dict[str, Any], volume: str) -> Work:
    """A session in the words of the call. Pure."""
    stage = {IN_THE_MAKING: Stage.RUNNING, READY: Stage.DONE}.get(session["state"], Stage.FAILED)
    progress, error = session["progress"] or {}, session["error"] or {}
    total = session["size_bytes"]
    return Work(
        Kind.UPLOAD, session["handle"], volume, stage, done=total if stage is Stage.DONE else progress.get("bytes_done", 0),
        total=total, uploaded=session["uploaded_bytes"], requests=session["requests"], message=error.get("message", ""),
        fix=error.get("hint", ""),
    )  # fmt: skip


def restored(volume: dict[str, Any], handle: str) -> Work:
    """A volume that was made of a snapshot. Pure."""
    size = volume["size_bytes"]
    return Work(Kind.RESTORE, volume["name"], handle, Stage.DONE, done=size, total=size)


def restore(volume: dict[str, Any], handle: str, progress: dict[str, Any]) -> Work:
    """A volume that is being made of a snapshot. Pure."""
    return Work(
        Kind.RESTORE, volume["name"], handle, Stage.RUNNING, done=progress.get("bytes_done", 0),
        total=progress.get("bytes_total", 0) or volume["size_bytes"],
    )  # fmt: skip


def work(here: Here, ids: Sequence[str]) -> list[Work]:
    """All that goes on, and the ends of the uploads and restores `ids`. Raises EngineUnavailable."""
    figures = here.engine.call("metrics")
    now = datetime.now(UTC)
    found = [
        upload(session, here.handle(session["volume"]["id"]))
        for session in figures["sessions"]
        if is_wanted(session, ids, now)
    ]
    for volume in figures["volumes"]:
        if volume["state"] == "restoring" and volume["restore_job"]:
            try:
                status = here.engine.call("job.status", job=volume["restore_job"])
            except StillframeError:  # it has just ended
                continue
            found.append(restore(volume, here.handle(volume["id"]), status["progress"] or {}))
        elif volume["state"] == "available" and volume["name"] in ids:
            found.append(restored(volume, here.handle(volume["id"])))
    return found
