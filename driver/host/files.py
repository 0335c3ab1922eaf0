"""Files that are whole after a power loss: written beside, synced, renamed, and the folder synced. Any thread."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from driver.core.errors import DataCorrupt


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file at `path`, mode 0600, durably. Raises OSError."""
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, path)
    sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Raises FileNotFoundError, or DataCorrupt if there is none in it."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataCorrupt(f"{path} is not JSON: {error}", "restore it from a backup, or remove what it describes") from None
    if not isinstance(content, dict):
        raise DataCorrupt(f"{path} holds no JSON object", "restore it from a backup, or remove what it describes")
    return content


def pwrite_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`, in as many calls as that takes. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def remove(path: Path) -> None:
    """Unlink a file, if it is there, durably: also one that somebody unlinked who died before it was."""
    with contextlib.suppress(FileNotFoundError):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, mode 0700, durably. Nothing happens if it is there."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """fsync a folder: its entries are durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
