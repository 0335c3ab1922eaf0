"""What volumes and sessions have done so far, for metrics: read from shared memory, no repository is asked."""

from __future__ import annotations

import os
from typing import Any, Final

from driver.core.errors import NotFound, StillframeError
from driver.engine.clients import KeeperClient
from driver.engine.sessions import Sessions
from driver.engine.volumes import Volumes
from driver.volume.layout import Shared, SlotWord, Word

BUCKETS: Final = 64
"""Of a histogram: the n-th counts answers that took less than 2**n ns, and not less than half of that."""
_COUNTERS: Final = {
    "read_bytes": SlotWord.READ_BYTES,
    "write_bytes": SlotWord.WRITE_BYTES,
    "discard_bytes": SlotWord.DISCARD_BYTES,
    "replayed_requests": SlotWord.REPLAYED,
    "preimages": SlotWord.PREIMAGES,
    "spilled_preimages": SlotWord.SPILLED,
    "throttled_writes": SlotWord.THROTTLED,
    "throttled_nanoseconds": SlotWord.THROTTLED_NANOSECONDS,
}
_HISTOGRAMS: Final = {"read_latency": SlotWord.READ_HISTOGRAM, "write_latency": SlotWord.WRITE_HISTOGRAM}


def figures(volumes: Volumes, sessions: Sessions, keeper: KeeperClient) -> dict[str, Any]:
    """{volumes, sessions}: each volume's description with its `counters` while it is held, and all sessions."""
    shown = []
    for record in volumes.all():
        try:
            described = volumes.describe(record)
        except NotFound:
            continue
        shown.append({**described, "counters": _counters(keeper, record.id)})
    return {"volumes": shown, "sessions": [sessions.describe(record) for record in sessions.all()]}


def _counters(keeper: KeeperClient, volume_id: str) -> dict[str, Any] | None:
    """Sums over all request slots since the volume was attached; None for a volume that nobody holds."""
    try:
        (memory,) = keeper.take(volume_id, ["memory"])
    except StillframeError:
        return None
    shared = Shared(memory)
    try:
        slots = [shared.slot_words(number) for number in range(shared.words[Word.SLOT_COUNT])]
        found: dict[str, Any] = {name: sum(slot[word] for slot in slots) for name, word in _COUNTERS.items()}
        for name, first in _HISTOGRAMS.items():
            found[name] = [sum(column) for column in zip(*(slot[first : first + BUCKETS] for slot in slots), strict=True)]
        for slot in slots:
            slot.release()
        return found
    finally:
        shared.close()
        os.close(memory)
