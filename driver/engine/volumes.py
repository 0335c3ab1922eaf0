"""Volumes of this node: their records, backing files, and what the keeper holds and runs for them.

One lock a volume, held through each operation; the table's own lock only guards the table. Threads of the service.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from driver.core.errors import (
    AlreadyExists,
    DataCorrupt,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StillframeError,
    Unsupported,
)
from driver.core.ids import check_name, is_id, new_id
from driver.core.sizes import CHUNK_BYTES, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, format_size, volume_size
from driver.engine.clients import KeeperClient
from driver.engine.records import Folder, VolumeRecord
from driver.engine.settings import PROCESSES_MAX, SPARES, THREADS, Settings
from driver.host import disks, files, loop
from driver.host.log import say
from driver.volume import changes
from driver.volume.layout import Shared, create_memory, volume_bytes

_SERVE: Final = "serve-"
_SHARE_SECONDS: Final = 0.5
"""How long writes to a volume may wait while another one comes to share its blocks."""


def base_name(base: Mapping[str, str]) -> str:
    """One string that tells a base from every other."""
    return f"{base['repository']}:{base['id']} {base['created']}"


class Volumes:
    """Creates, attaches, grows, detaches and deletes; knows which session a volume is in. Any thread."""

    def __init__(self, folder: Folder, settings: Settings, keeper: KeeperClient, engine_id: str) -> None:
        self._folder = folder
        self._settings = settings
        self._keeper = keeper
        self._engine_id = engine_id
        self._table = threading.Lock()  # guards the three below
        self._records, self._damaged = folder.volumes()
        self._locks: dict[str, threading.RLock] = {}
        self._sessions: dict[str, str] = {}
        self._held = set(keeper.list()["volumes"])

    # --- the table

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Operations on one volume come one after another."""
        check_name("volume", name)
        with self._table:
            lock = self._locks.setdefault(name, threading.RLock())
        with lock:
            yield

    def record(self, name: str) -> VolumeRecord:
        """The volume of that name. Raises InvalidArgument, NotFound."""
        check_name("volume", name)
        with self._table:
            record = self._records.get(name)
        if record is None:
            raise NotFound(f"there is no volume {name!r}", "see: stillframe volume list")
        return record

    def by_id(self, volume_id: str) -> VolumeRecord:
        """Raises NotFound."""
        with self._table:
            for record in self._records.values():
                if record.id == volume_id:
                    return record
        raise NotFound(f"there is no volume {volume_id}", "see: stillframe volume list")

    def name_of(self, volume: str) -> str:
        """The name of the volume that a name or an id means. Raises NotFound for an id of none, DataCorrupt for that of one
        that is left out."""
        damaged = self._damaged.get(volume)
        if damaged is not None:
            raise DataCorrupt(damaged.message, damaged.hint)
        return self.by_id(volume).name if is_id(volume) else volume

    def is_left_out(self, volume_id: str) -> bool:
        """Whether there is such a volume whose record is damaged."""
        return volume_id in self._damaged

    def all(self) -> list[VolumeRecord]:
        """All volumes, by name."""
        with self._table:
            return sorted(self._records.values(), key=lambda record: record.name)

    def save(self, record: VolumeRecord) -> VolumeRecord:
        """Durably, then for all to see. The volume is locked. Raises OSError."""
        self._folder.save_volume(record)
        with self._table:
            self._records[record.name] = record
        return record

    def set_session(self, volume_id: str, session: str) -> None:
        """Note that `session` runs on the volume."""
        with self._table:
            self._sessions[volume_id] = session

    def end_session(self, volume_id: str, session: str) -> None:
        """Note that `session` runs no more; another one of the volume is not touched."""
        with self._table:
            if self._sessions.get(volume_id) == session:
                del self._sessions[volume_id]

    def session_of(self, volume_id: str) -> str | None:
        """The id of the session that the volume is in."""
        with self._table:
            return self._sessions.get(volume_id)

    def describe(self, record: VolumeRecord) -> dict[str, Any]:
        """A volume as the command line shows it."""
        attached = self.is_attached(record)
        with contextlib.suppress(FileNotFoundError):
            return {
                "id": record.id,
                "name": record.name,
                "size_bytes": record.size_bytes,
                "provisioning": record.provisioning,
                "logical_block_size": record.logical_block_size,
                "state": record.state,
                "attached": attached,
                "device": self._node(record) if attached else None,
                "allocated_bytes": disks.allocated(self.disk(record)),
                "created": record.created,
                "lineage": record.lineage,
                "source_snapshot": record.source_snapshot,
                "source_volume": record.source_volume,
                "restore_job": record.restore_job,
                "snapshot_in_progress": self.session_of(record.id),
                "formatted": record.formatted,
                "base_snapshot": record.base["id"] if record.base else None,
                "growing": record.growing,
                "conditions": self._conditions(record, attached=attached),
            }
        raise NotFound(f"volume {record.name!r} was deleted meanwhile")

    def _conditions(self, record: VolumeRecord, *, attached: bool) -> list[dict[str, str]]:
        """What ails a volume: a kind (inaccessible, data_loss), a word, and what to do. Raises FileNotFoundError."""
        found = []
        held = os.stat(self.disk(record)).st_size
        if held < record.size_bytes:
            text = f"its file has {format_size(held)} of {format_size(record.size_bytes)}: restore it from a snapshot"
            found.append({"kind": "data_loss", "reason": "BackingFileTruncated", "message": text})
        if attached and any(process["given_up"] for process in self._serving(record)):
            text = "its process died again and again, so that its device is dead: detach it and attach it again"
            found.append({"kind": "inaccessible", "reason": "DeviceDead", "message": text})
        return found

    def note_formatted(self, name: str) -> VolumeRecord:
        """Note, durably, that the volume was mounted: from now on what is on it is somebody's data."""
        with self.locked(name):
            record = self.record(name)
            return record if record.formatted else self.save(record.changed(formatted=True))

    def note_growing(self, name: str, *, growing: bool) -> VolumeRecord:
        """Note, durably, that the file system on the volume is about to be grown unmounted, or that this came to its end."""
        with self.locked(name):
            record = self.record(name)
            return record if record.growing == growing else self.save(record.changed(growing=growing))

    # --- paths

    def disk(self, record: VolumeRecord) -> Path:
        """The backing file."""
        return self._folder.volume_folder(record.id) / "disk"

    def _node(self, record: VolumeRecord) -> str:
        return f"{self._folder.path}/dev/{record.name}"

    def _file(self, record: VolumeRecord) -> str:
        return f"{self._folder.path}/run/disks/{record.id}"

    def _device_record(self, record: VolumeRecord) -> str:
        return f"{self._folder.path}/run/loops/{record.id}.json"

    def _label(self, record: VolumeRecord) -> str:
        return f"sf:{self._engine_id}:{record.id}"

    def _processes(self, record: VolumeRecord) -> int:
        return record.processes or self._settings.processes

    # --- operations

    def create(
        self, name: str, size_bytes: int, provisioning: str, logical_block_size: int, processes: int = 0, *,
        new: bool = False, **source: Any,
    ) -> VolumeRecord:  # fmt: skip
        """A new volume, or the one that has this name and these properties already; `processes` 0 is the engine's default.
        A `new` one must be made by this call: then the name may not be taken.

        Raises AlreadyExists, OutOfSpace, InvalidArgument.
        """
        check_name("volume", name)
        size_bytes = volume_size(size_bytes)
        if provisioning not in ("thick", "thin"):
            raise InvalidArgument(f"{provisioning!r} is no provisioning", "use thick or thin")
        if logical_block_size not in (512, 4096):
            raise InvalidArgument(f"logical blocks of {logical_block_size} bytes", "use 512 or 4096")
        if not 0 <= processes <= PROCESSES_MAX:
            raise InvalidArgument(f"{processes} processes a volume", f"use 1 to {PROCESSES_MAX}")
        with self.locked(name):
            with self._table:
                known = self._records.get(name)
            if known is not None:
                asked = (size_bytes, provisioning, logical_block_size)
                if asked == (known.size_bytes, known.provisioning, known.logical_block_size) and not source and not new:
                    return known
                raise AlreadyExists(
                    f"volume {name!r} exists: {format_size(known.size_bytes)}, {known.provisioning}, "
                    f"blocks of {known.logical_block_size} bytes",
                    "take another name, or delete it first",
                )
            volume_id = new_id()
            record = VolumeRecord(
                id=volume_id, name=name, size_bytes=size_bytes, provisioning=provisioning,
                logical_block_size=logical_block_size, processes=processes,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                **{"lineage": volume_id, **source},
            )  # fmt: skip
            files.make_folder(self._folder.volume_folder(volume_id))
            try:
                disks.create(self.disk(record), size_bytes, thick=provisioning == "thick")
                os.close(disks.open_direct(self.disk(record), logical_block_size))
                return self.save(record)
            except BaseException:
                self._folder.remove_volume(volume_id)
                raise

    def share(self, source: str, target: VolumeRecord) -> bool:
        """Make `target`, new and thin, of what the thin volume `source` is now, by sharing its blocks; whether that could be
        done. Thick volumes have blocks of their own, so nothing is shared with them."""
        with self.locked(source):
            record = self.record(source)
            if (record.state, record.provisioning, target.provisioning) != ("available", "thin", "thin"):
                return False
            self.open(record)
            try:
                done = self._keeper.run(
                    "share", [record.id], file=str(self.disk(target)), size_bytes=target.size_bytes,
                    deadline_seconds=self._settings.cut_seconds, seconds=_SHARE_SECONDS,
                )  # fmt: skip
            finally:
                self.close(record)
        return bool(done["shared"])

    def is_attached(self, record: VolumeRecord) -> bool:
        """Whether its device is there for use: the note of it is the last that an attach makes."""
        return record.id in self._held and self._device(record) is not None

    def _device(self, record: VolumeRecord) -> loop.LoopDevice | None:
        """The device that is noted, if it is still that one: the kernel may have taken it away, and given its number to
        another volume since."""
        try:
            device = loop.LoopDevice.of(files.read_json(Path(self._device_record(record))))
        except FileNotFoundError:
            return None
        return device if device.exists() else None

    def is_held(self, record: VolumeRecord) -> bool:
        """Whether the keeper has anything of it: it is attached, in a session, or something was broken off."""
        return record.id in self._held

    def _stays_attached(self, record: VolumeRecord) -> bool:
        """Whether it is attached, also when its user lets go of it: a detach that was broken off is undone."""
        device = self._device(record) if record.id in self._held else None
        if device is not None and device.is_leaving():
            self._keeper.run("stay", [], record=self._device_record(record))
        return device is not None and device.exists()

    def _is_served(self, record: VolumeRecord) -> bool:
        """Whether there is anything of its device, be it what an attach or a detach left that was broken off."""
        if record.id not in self._held:
            return False
        return "fuse" in self._keeper.roles(record.id) or bool(self._serving(record))

    def _serving(self, record: VolumeRecord) -> list[dict[str, Any]]:
        """The kept processes that serve its device, also those that were given up."""
        return [process for process in self._keeper.show_all(record.id) if process["key"].startswith(_SERVE)]

    def open(self, record: VolumeRecord) -> None:
        """Have the keeper hold the volume's memory and files, if it does not. Nothing on disk claims to know what changed
        from then on."""
        if record.id in self._held:
            files.remove(self._changes(record))  # of a `close` that was broken off
            self._finish_growth(record)
            return
        spill = self._folder.volume_folder(record.id) / "spill"
        fds = {"memory": create_memory(record.size_bytes, record.provisioning == "thin")}
        try:
            self._load_changes(record, fds["memory"])
            fds["backing"] = disks.open_direct(self.disk(record), record.logical_block_size)
            fds["spill"] = os.open(spill, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._keeper.put(record.id, fds)
        finally:
            for fd in fds.values():
                os.close(fd)
        self._held.add(record.id)

    def close(self, record: VolumeRecord) -> None:
        """Have the keeper let go of the volume, unless it has a device or is in a session."""
        if record.id in self._held and not self._is_served(record) and self.session_of(record.id) is None:
            self._keeper.unkeep(record.id)
            self._save_changes(record)
            self._keeper.drop(record.id)
            files.remove(self._folder.volume_folder(record.id) / "spill")
            self._held.discard(record.id)

    # --- what was written since the base

    def _changes(self, record: VolumeRecord) -> Path:
        return self._folder.volume_folder(record.id) / "changes"

    def _about(self, record: VolumeRecord, base: Mapping[str, str]) -> str:
        """What a note of changes is about: the base, and the disk as it is now. Whoever else writes to the disk's file, or
        puts another one in its place, makes the note worthless. Raises OSError."""
        disk = os.stat(self.disk(record))
        return f"{base_name(base)} {disk.st_ino} {disk.st_ctime_ns}"

    def _load_changes(self, record: VolumeRecord, memory: int) -> None:
        """Know what was written since the base, as the last `close` left it. The file goes before anybody can write: from
        then on only memory knows."""
        if record.base is not None:
            shared = Shared(memory)
            try:
                changes.load(shared, self._changes(record), self._about(record, record.base))
            except OSError as error:
                text = f"what changed on volume {record.name} cannot be read, its next snapshot compares all"
                say("engine", f"{text}: {error}")
            finally:
                shared.close()
        files.remove(self._changes(record))

    def _save_changes(self, record: VolumeRecord) -> None:
        """Nobody has the volume open any more. Without the file, the next snapshot compares every chunk.

        The disk is synced first: what was in a snapshot and is lost with the power would pass for unchanged.
        """
        base = self.record(record.name).base
        if base is None:
            return
        try:
            memory, backing = self._keeper.take(record.id, ["memory", "backing"])
            try:
                os.fsync(backing)
                shared = Shared(memory)
                changes.save(shared, self._changes(record), self._about(record, base))
                shared.close()
            finally:
                os.close(memory)
                os.close(backing)
        except (OSError, NotFound) as error:
            self._say_not_noted(record, error)

    def _note_growth(self, record: VolumeRecord, about: str) -> None:
        """The engine itself has changed the disk of a volume that nobody has open; what was noted of it is still so."""
        try:
            changes.move(self._changes(record), about, self._about(record, record.base or {}))
        except OSError as error:
            self._say_not_noted(record, error)

    @staticmethod
    def _say_not_noted(record: VolumeRecord, error: Exception) -> None:
        say("engine", f"what changed on volume {record.name} cannot be noted, its next snapshot compares all: {error}")

    def note_base(self, volume_id: str, base: dict[str, str], number: int) -> bool:
        """From now on what is written is noted against the snapshot `base`, whose session began at base number `number`.
        False if another one came in between: what was written before that one's cut is forgotten. Raises NotFound,
        OSError."""
        name = self.by_id(volume_id).name
        with self.locked(name):
            record = self.record(name)
            if record.base != base:
                if record.base_number != number:
                    return False
                self.save(record.changed(base=base, base_number=number + 1))
            return True

    def note_restored(self, record: VolumeRecord) -> None:
        """The volume, which nobody has opened yet, is what its base is, and available. Raises OSError."""
        if record.base is not None:
            try:
                changes.save_none(self._changes(record), record.size_bytes, self._about(record, record.base))
            except OSError as error:
                self._say_not_noted(record, error)
        self.save(record.changed(state="available", restore_job=None))

    def note_damage(self, volume_id: str, number: int) -> None:
        """The next snapshot has no parent: what a session of base number `number` built on is damaged. Raises NotFound,
        OSError."""
        name = self.by_id(volume_id).name
        with self.locked(name):
            record = self.record(name)
            if record.base_number == number:
                self.save(record.changed(base=None, base_number=number + 1, full_from=number + 1))

    def attach(self, name: str) -> VolumeRecord:
        """Make the volume's block device. Raises FailedPrecondition while it is being restored, Unsupported."""
        with self.locked(name):
            record = self.record(name)
            if record.state != "available":
                raise FailedPrecondition(f"volume {name!r} is being restored", "wait until it is available")
            if self._stays_attached(record):
                return record
            if self._is_served(record):
                self._unserve(record)
            self.open(record)
            try:
                self._serve(record)
            except BaseException:
                with contextlib.suppress(StillframeError):
                    self._unserve(record)
                raise
            return record

    def _serve(self, record: VolumeRecord) -> None:
        try:
            fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unsupported(f"/dev/fuse: {error.strerror}", "load the kernel module: modprobe fuse") from None
        try:
            self._keeper.put(record.id, {"fuse": fuse})
        finally:
            os.close(fuse)
        processes = self._processes(record)
        self._keeper.run("mount", [record.id], file=self._file(record), slots=processes * (THREADS + SPARES))
        for number in range(processes):
            argument = {"first_slot": number * (THREADS + SPARES), "slots": THREADS, "spares": SPARES}
            self._keeper.keep(record.id, f"{_SERVE}{number}", "serve", argument)
        self._keeper.run(
            "attach", [], file=self._file(record), node=self._node(record),
            block_size=record.logical_block_size, label=self._label(record), record=self._device_record(record),
        )  # fmt: skip

    def _unserve(self, record: VolumeRecord) -> None:
        self._keeper.run(
            "detach", [], file=self._file(record), node=self._node(record), record=self._device_record(record)
        )
        for process in self._serving(record):
            self._keeper.unkeep(record.id, process["key"])
        self._keeper.drop(record.id, ["fuse"])
        self.close(record)

    def detach(self, name: str) -> VolumeRecord:
        """Take away the block device, and what an attach left that was broken off. Raises FailedPrecondition while it is
        mounted or open."""
        with self.locked(name):
            record = self.record(name)
            if self._is_served(record):
                self._unserve(record)
            return record

    def grow(self, name: str, size_bytes: int) -> VolumeRecord:
        """Extend the volume, online too. Raises InvalidArgument for a smaller size, OutOfSpace."""
        size_bytes = volume_size(size_bytes)
        with self.locked(name):
            record = self.record(name)
            if record.state != "available":
                raise FailedPrecondition(f"volume {name!r} is being restored", "wait until it is available")
            if size_bytes < record.size_bytes:
                raise InvalidArgument(
                    f"volume {name!r} has {format_size(record.size_bytes)}, more than {format_size(size_bytes)}",
                    "a volume cannot shrink; restore its files into a smaller one",
                )
            about = self._about(record, record.base) if record.base is not None else None
            disks.grow(self.disk(record), size_bytes, thick=record.provisioning == "thick")
            record = self.save(record.changed(size_bytes=size_bytes))
            if about is not None and record.id not in self._held:
                self._note_growth(record, about)
            if record.id in self._held:
                self._resize(record)
            return record

    def _resize(self, record: VolumeRecord) -> None:
        node = self._node(record) if self.is_attached(record) else None
        self._keeper.run("resize", [record.id], size_bytes=record.size_bytes, node=node)

    def _finish_growth(self, record: VolumeRecord) -> None:
        """A growth that was broken off behind its record: the volume has the size that the record says, everywhere."""
        (memory,) = self._keeper.take(record.id, ["memory"])
        try:
            known_bytes = volume_bytes(memory)
        finally:
            os.close(memory)
        if known_bytes != record.size_bytes:
            self._resize(record)

    def delete(self, name: str) -> None:
        """Remove the volume and its data. Raises FailedPrecondition while it is attached or in use."""
        with self.locked(name):
            record = self.record(name)
            if self.is_attached(record):
                raise FailedPrecondition(f"volume {name!r} is attached", f"stillframe volume detach {name}")
            session = self.session_of(record.id)
            if session is not None:
                raise FailedPrecondition(
                    f"volume {name!r} is being snapshotted", f"wait, or: stillframe snapshot delete {session}"
                )
            if record.state != "available":
                raise FailedPrecondition(f"volume {name!r} is being restored", "wait until that has ended")
            if self._is_served(record):
                self._unserve(record)
            self.forget(record)

    def capacity(self) -> dict[str, Any]:
        """What the folder of the backing files could still give to a thick volume, and the sizes that volumes may have."""
        free_bytes = disks.free(self._folder.path / "volumes")
        return {
            "available_bytes": free_bytes // CHUNK_BYTES * CHUNK_BYTES,
            "volume_bytes_min": VOLUME_BYTES_MIN,
            "volume_bytes_max": VOLUME_BYTES_MAX,
        }

    def forget(self, record: VolumeRecord) -> None:
        """Remove record and data, whatever the state."""
        self.close(record)
        with self._table:
            self._records.pop(record.name, None)
        self._folder.remove_volume(record.id)
