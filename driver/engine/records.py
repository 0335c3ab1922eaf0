"""What the engine keeps on disk of volumes and sessions. A record is written whole, durably, or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from driver.core.errors import DataCorrupt, Unsupported
from driver.core.ids import new_id
from driver.host import files
from driver.host.log import say

STATE_FORMAT: Final = 1
_PARTS: Final = {"base": ("repository", "id", "created"), "parent": ("id", "created", "size_bytes")}
"""Fields that are an object or null, and the keys that it has."""
_Record = TypeVar("_Record", "VolumeRecord", "SessionRecord")


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume. `state` is available or restoring; `created` is ISO 8601 in UTC; sizes are bytes; `formatted` once it was
    mounted, or if it was made from something; `growing` while its file system is grown unmounted, or if that was cut.
    `base` is the snapshot that what is written is noted against: repository, id, created; `base_number` counts its changes.
    Sessions of before number `full_from` made no parents: one of theirs turned out to be damaged."""

    id: str
    name: str
    size_bytes: int
    provisioning: str
    logical_block_size: int
    created: str
    lineage: str
    state: str = "available"
    source_snapshot: str | None = None
    processes: int = 0
    formatted: bool = False
    source_volume: str | None = None
    restore_job: str | None = None
    base: dict[str, str] | None = None
    base_number: int = 0
    full_from: int = 0
    growing: bool = False

    def changed(self, **changes: Any) -> Self:
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session. `state` is preparing, uploading, committed, failed or aborted; `created` is the cut's time.

    `group` names the group snapshot that it belongs to; `target` is the id of the volume that it clones into. `parent` is
    the snapshot that it builds on (id, created, size_bytes); `repository_id` is the repository's own; it took
    `begin_requests` to begin; `pending_chunks` is how many chunks it has to read; `base_number` is the volume's when it
    began.
    """

    id: str
    name: str
    repository: str
    volume_id: str
    volume_name: str
    lineage: str
    size_bytes: int
    logical_block_size: int
    on_buffer_full: str
    budget_bytes: int
    group: str | None = None
    target: str | None = None
    state: str = "preparing"
    created: str = ""
    error: dict[str, Any] | None = None
    baseline: dict[str, int] | None = None
    statistics: dict[str, Any] | None = None
    uploaded: dict[str, Any] | None = None
    parent: dict[str, Any] | None = None
    pending_chunks: int = 0
    repository_id: str | None = None
    begin_requests: int = 0
    conditional_put: bool | None = None
    base_number: int = 0

    def changed(self, **changes: Any) -> Self:
        return replace(self, **changes)


class Folder:
    """The state folder: `volumes/<id>/` and `sessions/<id>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("volumes", "sessions", "run", "run/disks", "run/loops"):
            (path / name).mkdir(mode=0o700, exist_ok=True)

    def engine_id(self) -> str:
        """The engine's own id, made at the first start. Raises Unsupported for the folder of a newer version."""
        path = self.path / "state.json"
        if not path.exists():
            files.write_json(path, {"format": STATE_FORMAT, "engine_id": new_id()[:8]})
        content = files.read_json(path)
        if content.get("format") != STATE_FORMAT:
            raise Unsupported(
                f"{self.path} was written by another version of Stillframe (format {content.get('format')}; "
                f"this one reads {STATE_FORMAT})",
                "start the version that wrote it",
            )
        if not isinstance(content.get("engine_id"), str):
            raise DataCorrupt(f"{path} has no engine_id", "restore it from a backup")
        return str(content["engine_id"])

    def volume_folder(self, volume_id: str) -> Path:
        """Where a volume's record and disk are; it need not exist."""
        return self.path / "volumes" / volume_id

    def session_folder(self, session_id: str) -> Path:
        """Where a session's record and spool are; it need not exist."""
        return self.path / "sessions" / session_id

    def save_volume(self, record: VolumeRecord) -> None:
        """Write the record durably, in one piece; its folder is there. Raises OSError."""
        files.write_json(self.volume_folder(record.id) / "volume.json", asdict(record))

    def save_session(self, record: SessionRecord) -> None:
        """Write the record durably, in one piece; its folder is made. Raises OSError."""
        folder = self.session_folder(record.id)
        files.make_folder(folder)
        files.write_json(folder / "session.json", asdict(record))

    def volumes(self) -> tuple[dict[str, VolumeRecord], dict[str, DataCorrupt]]:
        """Every volume, by name, and by id those that are said and left out, as their record is damaged, with what is wrong.

        Folders without a record are remains of a creation or deletion, and are removed.
        """
        found: dict[str, VolumeRecord] = {}
        damaged: dict[str, DataCorrupt] = {}
        for folder in sorted((self.path / "volumes").iterdir()):
            try:
                record = _load(VolumeRecord, folder / "volume.json")
                other = found.setdefault(record.name, record)
                if other is not record:
                    raise DataCorrupt(
                        f"{folder}/volume.json has the name of volume {other.id}: {record.name!r}",
                        "give it another name there, and start the engine again",
                    )
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
            except DataCorrupt as error:
                say("engine", f"a volume is left out, its data stays: {error}; {error.hint}")
                damaged[folder.name] = error
        return found, damaged

    def sessions(self) -> Iterator[SessionRecord]:
        """Every session; one whose record is damaged is said and left out: no volume and no other session depends on it."""
        for folder in sorted((self.path / "sessions").iterdir()):
            try:
                record = _load(SessionRecord, folder / "session.json")
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            except DataCorrupt as error:
                say("engine", f"a session is left out: {error}; its snapshot is what its repository says of it")
                continue
            yield record

    def remove_volume(self, volume_id: str) -> None:
        """Remove record, then data. Nothing happens if it is gone."""
        folder = self.volume_folder(volume_id)
        with contextlib.suppress(FileNotFoundError):
            files.remove(folder / "volume.json")
        shutil.rmtree(folder, ignore_errors=True)

    def remove_session(self, session_id: str) -> None:
        """Remove record, then spool. Nothing happens if it is gone."""
        folder = self.session_folder(session_id)
        with contextlib.suppress(FileNotFoundError):
            files.remove(folder / "session.json")
        shutil.rmtree(folder, ignore_errors=True)


def _load(kind: type[_Record], path: Path) -> _Record:
    """The record in the file, in the folder of its id. Raises FileNotFoundError, DataCorrupt."""
    content = files.read_json(path)
    try:
        record = msgspec.convert(content, kind)
        for name, keys in _PARTS.items():
            part = content.get(name)
            missing = [key for key in keys if part is not None and key not in part]
            if missing:
                raise msgspec.ValidationError(f"{name} lacks {', '.join(missing)}")
        if record.id != path.parent.name:
            raise msgspec.ValidationError(f"it is of {record.id!r}")
    except msgspec.ValidationError as error:
        raise DataCorrupt(
            f"{path} is damaged: {error}", f"restore it from a backup, or remove {path.parent}, and start the engine again"
        ) from None
    return record
