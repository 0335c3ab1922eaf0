"""Memory: an attached volume that nobody uses, beyond its request slots; a session's processes beyond its budget.

Pss (proc(5), smaps) shares out what several processes map. The request slots and the budget are shared memory of known
names and sizes; what is left is what a process costs by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any, Final

from bench import fio
from bench.engine import Engine, engine, snapshot, volume
from bench.plan import GIB, MIB, Plan
from bench.report import AT_MOST, Results
from bench.servers import store
from bench.subjects import OURS
from driver.volume.layout import PAGES_AT, REGIONS_AT, SLOT_BYTES

VOLUME: Final = "bench"
IDLE_MIB: Final = 8.0
SESSION_MIB: Final = 100.0
_SIZE_BYTES: Final = 2 * GIB
_LOAD_IOPS: Final = 4000
_VOLUME_MEMORY: Final = "memfd:stillframe-volume"
_PACKS_MEMORY: Final = "memfd:stillframe-packs"
_SENDER: Final = b"driver.transfer.job"


def measure(plan: Plan, results: Results) -> None:
    """All rounds."""
    for _ in range(plan.rounds):
        with store(plan, plan.store) as server, engine(plan, server) as running:
            size_bytes = plan.scaled(_SIZE_BYTES)
            with volume(running, VOLUME, size_bytes) as device:
                _idle(plan, results, running)
                _session(plan, results, running, device, size_bytes)


def _idle(plan: Plan, results: Results, running: Engine) -> None:
    time.sleep(1)
    serving = [entry for entry in _kept(running) if entry["key"].startswith("serve")]
    own = shared = 0
    for entry in serving:
        parts = pss(entry["pid"])
        shared += sum(value for name, value in parts.items() if _VOLUME_MEMORY in name)
        own += sum(value for name, value in parts.items() if _VOLUME_MEMORY not in name)
    slots = len(serving) * _threads(serving[0]["pid"]) * SLOT_BYTES
    beyond = (own + max(0, shared - slots)) / MIB
    results.case("memory: idle volume, beyond its request slots", OURS, beyond, "MiB")
    results.case("memory: idle volume, request slots", OURS, slots / MIB, "MiB")
    results.ratio("memory of an idle volume", beyond, AT_MOST, IDLE_MIB, unit="MiB")


def _threads(pid: int) -> int:
    """Worker threads of a volume process: each has a request slot; the first thread waits."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())) - 1


def _session(plan: Plan, results: Results, running: Engine, device: str, size_bytes: int) -> None:
    """The most that sweeper and sender hold together, sampled from the cut to the commit, under a load."""
    load = fio.Running(device, fio.Job("randwrite", 4, 600, rate_iops=_LOAD_IOPS))
    most: dict[str, float] = {"beyond": 0.0}
    try:
        with snapshot(running, VOLUME) as taken:
            while taken.runs:
                sample = _sample(running, taken.description["session"]["budget_bytes"])
                if sample["beyond"] > most["beyond"]:
                    most = sample
                time.sleep(0.1)
            taken.wait()
    finally:
        load.stop()
    for name, value in most.items():
        results.case(f"memory: session, {name}", OURS, value, "MiB")
    results.ratio("memory of a session beyond its budget", most["beyond"], AT_MOST, SESSION_MIB, unit="MiB")


def _sample(running: Engine, budget_bytes: int) -> dict[str, float]:
    """Sweeper and sender now, MiB: what each has of its own; what the session's shared memory has beside the budget."""
    found = {"sweeper": 0, "sender": 0, "tables": 0, "buffers above the budget": 0}
    pids = {entry["pid"]: "sweeper" for entry in _kept(running) if entry["key"].startswith("sweep") and entry["pid"]}
    pids |= dict.fromkeys(_senders(running), "sender")
    for pid, role in pids.items():
        with contextlib.suppress(OSError):
            found[role] += sum(value for name, value in pss(pid).items() if "memfd:stillframe" not in name)
            if role == "sweeper":
                found["tables"] = _present(pid, _VOLUME_MEMORY, REGIONS_AT, PAGES_AT)
                buffers = _present(pid, _VOLUME_MEMORY, PAGES_AT) + _present(pid, _PACKS_MEMORY)
                found["buffers above the budget"] = max(0, buffers - budget_bytes)
    return {"beyond": sum(found.values()) / MIB, **{name: value / MIB for name, value in found.items()}}


def _present(pid: int, name: str, start: int = 0, end: int | None = None) -> int:
    """Bytes in pages that exist between two offsets of a memfd that the process has open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if name in str(link.readlink()):
            with link.open("rb") as memory:
                return _data_bytes(memory.fileno(), start, os.fstat(memory.fileno()).st_size if end is None else end)
    return 0


def _data_bytes(fd: int, start: int, end: int) -> int:
    found = 0
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from there on
                break
            raise
        start = os.lseek(fd, first, os.SEEK_HOLE)
        found += max(0, min(start, end) - first)
    return found


def _kept(running: Engine) -> list[dict[str, Any]]:
    """The processes that the keeper runs for volumes."""
    volumes = running.call("engine.info")["processes"]["volumes"]
    return [entry for held in volumes.values() for entry in held["processes"]]


def _senders(running: Engine) -> list[int]:
    """Children of the transfer supervisor that send."""
    supervisor = running.call("engine.info")["processes"]["transfer"]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == supervisor and _SENDER in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def pss(pid: int) -> dict[str, int]:
    """Bytes of Pss of a process by what is mapped. Raises OSError if it has ended."""
    found: dict[str, int] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == "Pss":
            found[name] = found.get(name, 0) + int(rest.split()[0]) * 1024
        elif "-" in key.split()[0] and " " in line and not key[0].isupper():
            name = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
    return found
