"""Reads a running session's figures from the memory that its processes share. Any thread of the service."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from driver.core.errors import DeviceError, OutOfSpace, SnapshotFailed, StillframeError
from driver.core.sizes import CHUNK_BYTES, UNIT_BYTES, UNITS_PER_CHUNK, format_size
from driver.engine.records import SessionRecord
from driver.host.locks import RecordLocks
from driver.transfer.packbuffer import BUFFER_BYTES, Header, PackBuffers, State
from driver.volume.layout import Failure, Shared, SlotWord, Word
from driver.volume.preimages import resize

_COUNTED = (SlotWord.PREIMAGES, SlotWord.SPILLED, SlotWord.THROTTLED, SlotWord.THROTTLED_NANOSECONDS)


class Meter:
    """Maps a volume's and its session's memory; takes over the descriptors."""

    def __init__(self, memory: int, packs: int) -> None:
        self.shared = Shared(memory)
        self._packs = PackBuffers(packs)
        self._fds = (memory, packs)
        self._locks = RecordLocks(memory)
        self._lock = threading.Lock()  # guards against a close while a figure is read
        self._closed = False
        self._last: dict[str, Any] = {"session": None, "uploaded": {}, "progress": None}

    def swept(self) -> bool:
        """Whether the sweep is done: nothing is captured any more."""
        with self._lock:
            return not self._closed and bool(self._packs.get(Header.SWEEP_DONE))

    def held_slots(self) -> int | None:
        """How many pre-image slots in memory nobody else may have: its limit, or what it holds beyond. None once closed."""
        with self._lock:
            if self._closed:
                return None
            words = self.shared.words
            return max(words[Word.MEMORY_LIMIT], words[Word.USED])

    def resize(self, session: str, slots: int) -> None:
        """Let the session hold so many pre-image slots in memory from now on. One thread at a time."""
        with self._lock:
            if not self._closed:
                resize(self.shared, self._locks, session, slots)

    def sweeper_silent_seconds(self) -> float:
        """Since the sweeper last showed that it is alive."""
        with self._lock:
            if self._closed:
                return 0.0
            return (time.monotonic_ns() - self.shared.words[Word.SWEEP_NANOSECONDS]) / 1e9

    def _sum(self, word: SlotWord) -> int:
        count = self.shared.words[Word.SLOT_COUNT]
        return sum(self.shared.slot_words(number)[word] for number in range(count))

    def at_cut(self) -> dict[str, int]:
        """What the volume's counters, which never go back, showed when the session began, and the cut's length."""
        counted = {word.name: self._sum(word) for word in _COUNTED}
        return {**counted, "CUT": self.shared.words[Word.CUT_NANOSECONDS]}

    def read(self, record: SessionRecord) -> dict[str, Any]:
        """`session`, `uploaded` and `progress` as a snapshot's description has them."""
        with self._lock:
            if not self._closed:
                self._last = self._read(record)
            return self._last

    def _read(self, record: SessionRecord) -> dict[str, Any]:
        words = self.shared.words
        packs = self._packs
        baseline = record.baseline or {}
        counted = {word: self._sum(word) - baseline.get(word.name, 0) for word in _COUNTED}
        filled = packs.count - len(packs.packs_in(State.FREE))
        total = words[Word.PENDING_CHUNKS]
        stored = packs.get(Header.STORED_CHUNKS) + packs.get(Header.ZERO_CHUNKS) + packs.get(Header.SAME_CHUNKS)
        return {
            "session": {
                "preimages": counted[SlotWord.PREIMAGES],
                "preimage_bytes": counted[SlotWord.PREIMAGES] * UNIT_BYTES,
                "buffer_bytes": words[Word.USED] * UNIT_BYTES + filled * BUFFER_BYTES,
                "buffer_peak_bytes": words[Word.PEAK] * UNIT_BYTES + packs.count * BUFFER_BYTES,
                "budget_bytes": words[Word.MEMORY_LIMIT] * UNIT_BYTES + packs.count * BUFFER_BYTES,
                "spill_bytes": words[Word.SPILL_USED] * UNIT_BYTES,
                "spilled": counted[SlotWord.SPILLED],
                "stage": _stage(words),
                "swept_bytes": total * CHUNK_BYTES,
                "throttled": counted[SlotWord.THROTTLED],
                "throttle_seconds": counted[SlotWord.THROTTLED_NANOSECONDS] / 1e9,
                "cut_seconds": baseline.get("CUT", 0) / 1e9,
                "retries": packs.get(Header.RETRIES),
            },
            "uploaded": {
                "uploaded_bytes": packs.get(Header.UPLOADED_BYTES),
                "requests": packs.get(Header.REQUESTS),
                "stored_bytes": packs.get(Header.STORED_BYTES),
            },
            "progress": {
                "chunks_total": total,
                "chunks_sealed": min(words[Word.SWEPT_CHUNKS], total),
                "chunks_stored": min(stored, total),
                "bytes_total": total * CHUNK_BYTES,
                "bytes_done": min(stored, total) * CHUNK_BYTES,
            },
        }

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._locks.close()
                self.shared.close()
                self._packs.close()
                for fd in self._fds:
                    os.close(fd)


def _stage(words: memoryview) -> str:
    """What takes the pre-images: memory; the spill file, while first touches are slowed the more the fuller it is; throttle:
    nothing is left, and every first touch waits as long as it may; full: the session has failed of it."""
    if words[Word.FAILED] == Failure.BUFFER_FULL:
        return "full"
    if words[Word.USED] + UNITS_PER_CHUNK <= words[Word.MEMORY_LIMIT]:
        return "memory"
    return "spill" if words[Word.SPILL_USED] + UNITS_PER_CHUNK <= words[Word.SPILL_LIMIT] else "throttle"


def failure_of(shared: Shared, record: SessionRecord) -> StillframeError | None:
    """Why the block path or the sweeper failed the session, if they did."""
    failure = Failure(shared.words[Word.FAILED])
    reason = os.strerror(shared.words[Word.FAILED_ERRNO])
    memory = format_size(shared.words[Word.MEMORY_LIMIT] * UNIT_BYTES)
    match failure:
        case Failure.NONE:
            return None
        case Failure.BUFFER_FULL if shared.words[Word.FAILED_ERRNO]:
            return OutOfSpace(
                f"the session's {memory} for pre-images were full, and the spill file on this node's "
                f"disk could not grow: {reason}",
                "make room on the disk of the state folder, or raise --session-memory",
            )
        case Failure.BUFFER_FULL:
            return OutOfSpace(
                f"the pre-images outgrew the session's {memory} of memory and its spill file: "
                "the volume was overwritten faster than the store took the snapshot",
                "raise --session-memory or --spill, give the store more bandwidth, or snapshot at a quieter time",
            )
        case Failure.READ_ERROR:
            return DeviceError(
                f"reading volume {record.volume_name!r} on this node's disk failed: {reason}",
                "check the disk (dmesg, smartctl); the volume's own data may be damaged",
            )
        case Failure.SPILL_ERROR:
            return DeviceError(f"the spill file could not be written or read back: {reason}", "check the node's disk")
        case _:
            return SnapshotFailed(f"the session failed: {failure.name.lower()}")
