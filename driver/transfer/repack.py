"""Which packs are worth sending again: those of which a snapshot needs little, so that the rest can go. Pure; any thread.

A committed snapshot is never rewritten. But the next one may send a chunk that its parent has again, in a new pack; when
the snapshots that need the old pack are gone, all of it goes. A session that stores a region's index says which chunks those
are; the engine has the next one read them as if they had been written (`volume/changes.py`), and its sender, which decides
from the same index, does not take them for stored. That costs an upload of what is needed of the pack, and a read
from the volume's disk, and frees the rest of it: it pays where little is needed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from driver.core.sizes import CHUNK_BYTES, CHUNKS_PER_REGION, MIB
from driver.transfer.region import Codec, RegionIndex

NEEDED_MAX: Final = 1 / 4
"""Of a region's share of a pack. One that needs more stays: so what lies in packs is less than four times of what is needed
of them."""
FREED_MIN_BYTES: Final = MIB // 4
"""Of a share. Less is not worth the requests."""
SPARE_BYTES: Final = 256 * MIB
"""What one snapshot sends for this at most; the next one goes on."""
REGION_SPARE_BYTES: Final = 32 * MIB
"""Of it, for one region."""
RUNS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Use:
    """A pack object: how many of its bytes were a region's when it was stored, and how many of these the region needs still.

    What others have in the pack does not count: a pack of changes here and there is little of each region, and all needed.
    """

    name: uuid.UUID
    share_bytes: int
    needed_bytes: int


def uses(index: RegionIndex) -> list[Use]:
    """The packs of a region."""
    needed = [0] * len(index.packs)
    for chunk in index.chunks:
        if chunk.codec != Codec.ZERO:
            needed[chunk.pack] += chunk.length
    return [Use(pack.name, pack.share_bytes, length) for pack, length in zip(index.packs, needed, strict=True)]


def send_again(packs: Iterable[Use], spare_bytes: int) -> frozenset[uuid.UUID]:
    """The packs whose chunks the next snapshot should send again: what frees most for each byte sent comes first, and all
    together need at most `spare_bytes`, as they are stored now."""
    chosen = set()
    for pack in sorted(packs, key=lambda pack: (pack.needed_bytes / max(1, pack.share_bytes), pack.name.int)):
        if not _pays(pack):
            continue
        if pack.needed_bytes > spare_bytes:
            break
        spare_bytes -= pack.needed_bytes
        chosen.add(pack.name)
    return frozenset(chosen)


def packs_to_send_again(index: RegionIndex) -> frozenset[uuid.UUID]:
    """The packs that a region's chunks are to leave."""
    return send_again(uses(index), REGION_SPARE_BYTES)


def chunks_to_send_again(index: RegionIndex) -> Iterator[tuple[int, int]]:
    """Runs (first, count) of the volume's chunks that lie in `packs_to_send_again`, ascending."""
    packs = packs_to_send_again(index)
    if not packs:
        return
    start, end = 0, -1
    for position, chunk in enumerate(index.chunks, index.number * CHUNKS_PER_REGION):
        if chunk.codec != Codec.ZERO and index.packs[chunk.pack].name in packs:
            if position == end:
                end += 1
                continue
            if end > start:
                yield start, end - start
            start, end = position, position + 1
    if end > start:
        yield start, end - start


def within(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """As many of the runs as one snapshot sends again."""
    chosen: list[tuple[int, int]] = []
    left = SPARE_BYTES // CHUNK_BYTES
    for first, count in runs:
        if not left or len(chosen) == RUNS_MAX:
            break
        chosen.append((first, min(count, left)))
        left -= chosen[-1][1]
    return chosen


def _pays(pack: Use) -> bool:
    return pack.needed_bytes <= NEEDED_MAX * pack.share_bytes and pack.share_bytes - pack.needed_bytes >= FREED_MIN_BYTES
