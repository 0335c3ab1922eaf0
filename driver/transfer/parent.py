"""The snapshot that a session builds on: where its chunks are stored. Any thread of the sender.

A region's index is fetched when something of the region is looked up, once, checked, and kept in the spool: a sender's
successor finds it there.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from typing import NamedTuple

from driver.core.errors import DataCorrupt, Unsupported
from driver.core.sizes import CHUNKS_PER_REGION, chunks_of
from driver.store.port import ObjectStore
from driver.transfer import region, repack
from driver.transfer.records import Manifest, RegionEntry, corrupt, missing
from driver.transfer.region import CHUNK, HEADER, PACK, Codec, RegionIndex
from driver.transfer.spool import Spool


class _Known(NamedTuple):
    """Of an index in the spool: where its chunks begin, and which of its packs are to be left."""

    chunks_at: int
    left: frozenset[int]


class Parent:
    """`manifest` is the parent's."""

    def __init__(self, store: ObjectStore, manifest: Manifest, spool: Spool) -> None:
        self._store = store
        self._manifest = manifest
        self._spool = spool
        self._lock = threading.Lock()  # guards _found; nothing is asked of the store with it held
        self._found: dict[int, Future[_Known]] = {}

    @property
    def id(self) -> str:
        return self._manifest.snapshot.id

    def entry(self, number: int) -> RegionEntry | None:
        """What the parent's manifest says of a region; None if the parent is too small to have it."""
        regions = self._manifest.regions
        return regions[number] if number < len(regions) else None

    def chunks(self, number: int) -> int:
        """How many chunks of a region the parent has."""
        return max(0, min(CHUNKS_PER_REGION, chunks_of(self._manifest.size_bytes) - number * CHUNKS_PER_REGION))

    def digest(self, chunk: int) -> bytes | None:
        """A chunk's digest; None if the parent does not have it, or as zeros, or in a pack that is to be left. Raises
        DataCorrupt, and what the store raises."""
        number, position = divmod(chunk, CHUNKS_PER_REGION)
        if position >= self.chunks(number) or self._manifest.regions[number].is_zero:
            return None
        known = self._fetched(number)
        at = known.chunks_at + position * CHUNK.size
        codec, pack, _, _, digest = CHUNK.unpack(self._spool.parent_bytes(number, at, CHUNK.size))
        return None if codec == Codec.ZERO or pack in known.left else digest

    def index(self, number: int) -> RegionIndex | None:
        """A region's index; None if all of it is zero, or none of it is the parent's. Raises as `digest`."""
        entry = self.entry(number)
        if entry is None or entry.is_zero:
            return None
        self._fetched(number)
        return region.decode(self._spool.parent(number) or b"", entry.key or "")

    def _fetched(self, number: int) -> _Known:
        """Have the index in the spool."""
        with self._lock:
            found = self._found.get(number)
            is_mine = found is None
            if found is None:
                found = self._found[number] = Future()
        if is_mine:
            try:
                found.set_result(self._usable(number))
            except BaseException as error:
                with self._lock:
                    del self._found[number]
                found.set_exception(error)
                raise
        return found.result()

    def _usable(self, number: int) -> _Known:
        try:
            return self._fetch(number)
        except (DataCorrupt, Unsupported) as error:
            raise DataCorrupt(f"snapshot {self.id}, which this one builds on, is damaged: {error}", error.hint) from error

    def _fetch(self, number: int) -> _Known:
        entry = self._manifest.regions[number]
        key = entry.key or ""
        data = self._spool.parent(number)
        if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            data = self._store.get(key, region.BYTES_MAX)
            if data is None:
                raise missing(key)
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise corrupt(key, "it is not what the manifest says")
            self._spool.put_parent(number, data)
        index = region.decode(data, key)
        if (index.number, len(index.chunks), str(index.lineage)) != (number, self.chunks(number), self._manifest.lineage):
            raise corrupt(key, "it describes another region")
        packs = repack.packs_to_send_again(index)
        left = frozenset(place for place, pack in enumerate(index.packs) if pack.name in packs)
        return _Known(HEADER.size + len(index.packs) * PACK.size, left)
