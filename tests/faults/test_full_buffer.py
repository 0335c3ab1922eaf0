"""A buffer that fills: memory, the spill file, throttling, failure; each is seen, none is more than was allowed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.sizes import MIB
from tests.engines import Engine, engine, mounted, run
from tests.faults.test_disk import engine_on, write
from tests.oracle import fill, read_device
from tests.power.logdisk import LogDisk, logdisk

SIZE = 128 * MIB
STAGES = ["memory", "spill", "throttle", "full"]


def spill_of(made: Engine, name: str) -> Path:
    return made.state / "volumes" / str(made.call("volume.show", name=name)["id"]) / "spill"


def test_each_stage_of_a_full_buffer_is_seen_and_bounded() -> None:
    with engine("--session-memory", "32Mi", "--spill", "40Mi", "--upload-rate", "256Ki") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        spill, seen, largest, counted = spill_of(made, "v"), list[str](), 0, 0
        for number in reversed(range(SIZE // MIB)):
            write(device, number * MIB, bytes([number]) * MIB)
            shown = made.call("snapshot.show", snapshot="s")
            session = shown["session"]
            if session["stage"] not in seen:
                seen.append(session["stage"])
            largest = max(largest, spill.stat().st_size, session["spill_bytes"])
            assert session["buffer_bytes"] <= session["budget_bytes"] <= 32 * MIB
            assert session["throttled"] >= counted
            counted = session["throttled"]
        shown = made.wait_snapshot("s")
        seen += [shown["session"]["stage"]] if shown["session"]["stage"] not in seen else []
        assert seen == [stage for stage in STAGES if stage in seen]
        assert {"memory", "spill", "full"} <= set(seen)
        assert 16 * MIB < largest <= 40 * MIB
        assert shown["session"]["spilled"] > 0 and counted > 0 and shown["session"]["throttle_seconds"] > 0
        assert (shown["state"], shown["error"]["kind"]) == ("failed", "OutOfSpace")
        assert "outgrew" in shown["error"]["message"] and shown["error"]["hint"]
        assert spill.stat().st_blocks == 0, "its room was given back"
        assert read_device(device, SIZE) == b"".join(bytes([number]) * MIB for number in range(SIZE // MIB))


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[tuple[LogDisk, Engine]]:
    """An engine on a disk of which parts can be broken, whose sessions spill early."""
    options = ("--session-memory", "32Mi", "--spill", "64Mi", "--upload-rate", "4Mi")
    with logdisk(tmp_path, 512 * MIB) as disk:
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk.device)
        with mounted(disk.device) as host, engine_on(host, tmp_path, *options) as made:
            yield disk, made


def forget_pages(file: Path) -> None:
    """Have what is read of a file come from its disk, as when memory is short."""
    fd = os.open(file, os.O_RDWR)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def extents(file: Path) -> list[tuple[int, int]]:
    """Where on its disk a file lies, with the blocks that it has and has not written yet."""
    found = re.findall(r"^\s*\d+:\s*\d+\.\.\s*\d+:\s*(\d+)\.\.\s*(\d+):", run("filefrag", "-v", "-b1", str(file)), re.M)
    return [(int(first), int(last) + 1) for first, last in found]


def longest(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    """The longest range of neighbours."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return max(joined, key=lambda found: found[1] - found[0])


@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_spill_file_on_a_bad_disk_fails_the_snapshot_not_the_writes(broken: tuple[LogDisk, Engine], kind: str) -> None:
    disk, made = broken
    device = made.volume("v", SIZE)
    fill(device, SIZE)
    made.call("snapshot.create", volume="v", name="s")
    spill, number = spill_of(made, "v"), SIZE // MIB
    while not made.call("snapshot.show", snapshot="s")["session"]["spilled"]:
        number -= 1
        write(device, number * MIB, b"x" * MIB)
    disk.break_range(kind, *longest(extents(spill)))
    for left in reversed(range(number - 8, number)):
        write(device, left * MIB, b"y" * MIB)
        if kind == "read":
            forget_pages(spill)
    shown = made.wait_snapshot("s")
    assert shown["state"] == "failed", shown
    assert (shown["state"], shown["error"]["kind"]) == ("failed", "DeviceError"), shown
    assert "spill file" in shown["error"]["message"] and "Input/output error" in shown["error"]["message"]
    disk.repair()
    assert os.path.getsize(spill) == 0
    content = read_device(device, SIZE)
    assert content[(number - 8) * MIB : number * MIB] == b"y" * (8 * MIB)
    assert content[number * MIB :] == b"x" * (SIZE - number * MIB)
