"""Prometheus' view of the node: volumes, sessions, whether the engine answers. Any thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from driver.core.errors import StillframeError
from driver.node.conditions import dead_of
from driver.node.here import Here
from driver.rpc.names import DEVICE_DEAD

_FIRST_BUCKET: Final = 14
_LAST_BUCKET: Final = 34
"""From 16 us to 17 s; what is below and above is in the first and in +Inf."""
_COUNTERS: Final = {
    "read_bytes": ("stillframe_volume_read_bytes", "Bytes read by the volume's users", 1.0),
    "write_bytes": ("stillframe_volume_written_bytes", "Bytes written by the volume's users", 1.0),
    "discard_bytes": ("stillframe_volume_discarded_bytes", "Bytes discarded or zeroed", 1.0),
    "replayed_requests": ("stillframe_volume_replayed_requests", "Requests taken over from a process that died", 1.0),
    "preimages": ("stillframe_volume_preimages", "Units of 4 KiB saved before they were overwritten", 1.0),
    "spilled_preimages": ("stillframe_volume_spilled_preimages", "Of these, those that went to the spill file", 1.0),
    "throttled_writes": ("stillframe_volume_throttled_writes", "Writes slowed down for want of buffer", 1.0),
    "throttled_nanoseconds": ("stillframe_volume_throttled_seconds", "Time that writes were slowed down", 1e-9),
}
_SESSION_GAUGES: Final = {
    "buffer_bytes": ("stillframe_session_buffer_bytes", "Memory in use for pre-images and packs"),
    "budget_bytes": ("stillframe_session_budget_bytes", "Memory that the session may use"),
    "spill_bytes": ("stillframe_session_spill_bytes", "Pre-images in the spill file"),
    "preimages": ("stillframe_session_preimages", "Units of 4 KiB saved before they were overwritten"),
    "throttle_seconds": ("stillframe_session_throttled_seconds", "Time that writes were slowed down"),
}
RUNNING: Final = "uploading"


class Engine(Collector):
    """Asks the engine at each scrape; when it is down, a scrape says so and has nothing else."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is, is known at a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("stillframe_engine_up", "Whether the node's engine answers")
        try:
            figures: dict[str, Any] = self._here.engine.call("metrics")
        except (StillframeError, OSError):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _of_volumes(figures["volumes"], dead_of(self._here, figures["volumes"]))
        yield from _of_sessions(figures["sessions"])


def _of_volumes(volumes: Sequence[dict[str, Any]], dead: Collection[str]) -> Iterator[Metric]:
    size = GaugeMetricFamily("stillframe_volume_size_bytes", "Size of the volume", labels=["volume"])
    allocated = GaugeMetricFamily("stillframe_volume_allocated_bytes", "Disk space it takes", labels=["volume"])
    attached = GaugeMetricFamily("stillframe_volume_attached", "Whether its device is there", labels=["volume"])
    unwell = GaugeMetricFamily("stillframe_volume_condition", "1 for each thing that ails it", labels=["volume", "reason"])
    for volume in volumes:
        size.add_metric([volume["name"]], volume["size_bytes"])
        allocated.add_metric([volume["name"]], volume["allocated_bytes"])
        attached.add_metric([volume["name"]], int(volume["attached"]))
        reasons = {condition["reason"] for condition in volume["conditions"]}
        for reason in reasons | ({DEVICE_DEAD} if volume["name"] in dead else set()):
            unwell.add_metric([volume["name"], reason], 1)
    yield from (size, allocated, attached, unwell)
    held = [volume for volume in volumes if volume["counters"]]
    for key, (name, text, factor) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["volume"])
        for volume in held:
            counter.add_metric([volume["name"]], volume["counters"][key] * factor)
        yield counter
    for side in ("read", "write"):
        histogram = HistogramMetricFamily(
            f"stillframe_volume_{side}_duration_seconds", f"From a {side}'s receipt to its answer", labels=["volume"]
        )
        for volume in held:
            buckets, total = buckets_of(volume["counters"][f"{side}_latency"])
            histogram.add_metric([volume["name"]], buckets, sum_value=total)
        yield histogram


def buckets_of(counts: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulated buckets by their upper bound in seconds, and an estimate of the sum (a bucket's middle for each)."""
    buckets = []
    below = 0
    for exponent, count in enumerate(counts):
        below += count
        if _FIRST_BUCKET <= exponent <= _LAST_BUCKET:
            buckets.append((f"{2**exponent / 1e9:.9g}", float(below)))
    buckets.append(("+Inf", float(sum(counts))))
    total = sum(count * 0.75 * 2**exponent / 1e9 for exponent, count in enumerate(counts))
    return buckets, total


def chunks_by_state(progress: dict[str, Any] | None) -> dict[str, int]:
    """How many of a session's chunks are in each state; every chunk is in one."""
    if not progress:
        return {}
    stored = progress["chunks_stored"]
    sealed = max(progress["chunks_sealed"] - stored, 0)
    return {"pending": progress["chunks_total"] - stored - sealed, "sealed": sealed, "stored": stored}


def _of_sessions(sessions: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    running = [session for session in sessions if session["state"] == RUNNING]
    labels = ["volume", "snapshot"]
    chunks = GaugeMetricFamily("stillframe_session_chunks", "Chunks of a running session", labels=[*labels, "state"])
    uploaded = GaugeMetricFamily("stillframe_session_uploaded_bytes", "Bytes that the store has confirmed", labels=labels)
    requests = GaugeMetricFamily("stillframe_session_requests", "Requests sent to the store", labels=labels)
    for session in running:
        known = [session["volume"]["name"], session["name"]]
        for state, count in chunks_by_state(session["progress"]).items():
            chunks.add_metric([*known, state], count)
        uploaded.add_metric(known, session["uploaded_bytes"])
        requests.add_metric(known, session["requests"])
    yield from (chunks, uploaded, requests)
    for key, (name, text) in _SESSION_GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=labels)
        for session in running:
            if session["session"]:
                gauge.add_metric([session["volume"]["name"], session["name"]], session["session"][key])
        yield gauge
    ended = GaugeMetricFamily("stillframe_snapshots", "Snapshots that this node remembers", labels=["state"])
    for state in ("committed", "failed", "aborted"):
        ended.add_metric([state], sum(1 for session in sessions if session["state"] == state))
    yield ended
    age = GaugeMetricFamily(
        "stillframe_snapshot_age_seconds", "Since the cut of a volume's newest complete snapshot", labels=["volume"]
    )
    newest: dict[str, str] = {}
    for session in sessions:
        if session["state"] == "committed":
            newest[session["volume"]["name"]] = max(newest.get(session["volume"]["name"], ""), session["created"])
    for volume, created in newest.items():
        age.add_metric([volume], time.time() - datetime.fromisoformat(created).timestamp())
    yield age
