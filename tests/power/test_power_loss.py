"""Real file systems on real volumes on a disk that loses its power at any moment, with any part of what was not flushed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from driver.core.sizes import MIB
from tests.engines import Engine, mounted, run
from tests.power.logdisk import LogDisk, logdisk, lose_power
from tests.soak.stamps import BLOCK

SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "raw": 16 * MIB}
HOST = 1024 * MIB
SECTOR = 512
MOMENTS = 10


@dataclass
class Story:
    """What was promised when: by the log position at which the promise was made."""

    files: list[tuple[int, str, str, bytes]] = field(default_factory=list)  # volume, name, content
    writes: list[tuple[int, bytes]] = field(default_factory=list)  # all writes of blocks of the raw device, in order
    flushed: list[tuple[int, int]] = field(default_factory=list)  # how many of them
    volumes: list[tuple[int, str, int]] = field(default_factory=list)
    cut: int = 0


def start(state: Path, repository: Path) -> Engine:
    made = Engine(state, ("--grace", "2", "--upload-rate", "32Ki"))
    made.log = repository.parent / "engine.log"
    (state / "repositories.toml").unlink(missing_ok=True)  # the operator's file, whole as a tool that deploys leaves it
    made.repository("local", f"file://{repository}")
    return made.start()


def write_files(story: Story, disk: LogDisk, kind: str, folder: Path, count: int) -> None:
    """Files, each durable before the next."""
    for number in range(count):
        content = random.Random(f"{kind}{number}").randbytes(3000 * (number % 7 + 1))
        path = folder / f"f{number}"
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        story.files.append((disk.position(), kind, path.name, content))


def write_blocks(story: Story, disk: LogDisk, device: str, count: int) -> None:
    """Blocks of a raw device, some of them flushed."""
    dice = random.Random(5)
    fd = os.open(device, os.O_RDWR)
    for number in range(count):
        block, data = dice.randrange(64), dice.randbytes(16) * (BLOCK // 16)
        story.writes.append((block, data))
        os.pwrite(fd, data, block * BLOCK)
        if number % 5 == 4:
            os.fsync(fd)
            story.flushed.append((disk.position(), len(story.writes)))
    os.close(fd)


def check_blocks(story: Story, position: int, device: str) -> None:
    """Each sector of a block is that of the last write that was flushed, or of a later one, which may be torn."""
    count = max((count for at, count in story.flushed if at <= position), default=0)
    promised = {block: number for number, (block, _) in enumerate(story.writes[:count])}
    with open(device, "rb") as file:
        for block, number in promised.items():
            legal = [data for later, data in story.writes[number:] if later == block]
            file.seek(block * BLOCK)
            found = file.read(BLOCK)
            for at in range(0, BLOCK, SECTOR):
                assert found[at : at + SECTOR] in [data[at : at + SECTOR] for data in legal], f"block {block}, byte {at}"


def play(disk: LogDisk, host: Path, repository: Path) -> Story:
    """What happens before the power goes: volumes of three kinds, all written at once, a snapshot that has begun."""
    story = Story()
    made = start(host / "state", repository)
    try:
        devices = {}
        for kind, size in SIZES.items():
            made.call("volume.create", name=kind, size_bytes=size, provisioning="thin" if kind == "xfs" else "thick")
            story.volumes.append((disk.position(), kind, size))
            devices[kind] = made.call("volume.attach", name=kind)["device"]
        run("mkfs.ext4", "-q", devices["ext4"])
        run("mkfs.xfs", "-q", devices["xfs"])
        with mounted(devices["ext4"]) as ext4, mounted(devices["xfs"]) as xfs:
            writers = [
                threading.Thread(target=write_files, args=[story, disk, "ext4", ext4, 30]),
                threading.Thread(target=write_files, args=[story, disk, "xfs", xfs, 30]),
                threading.Thread(target=write_blocks, args=[story, disk, devices["raw"], 120]),
            ]
            for thread in writers[:2]:
                thread.start()
            made.call("snapshot.create", volume="ext4", name="s")
            story.cut = disk.position()
            writers[2].start()
            for thread in writers:
                thread.join()
            made.kill()  # as the power does; what is mounted is dead
            subprocess.run(["umount", "-l", str(ext4), str(xfs)], capture_output=True, check=False)
            for folder in (ext4, xfs):  # `mounted` unmounts something
                run("mount", "-t", "tmpfs", "none", str(folder))
    finally:
        made.clean_devices()
    return story


@contextlib.contextmanager
def host_of(image: Path) -> Iterator[Path]:
    """The disk's file system, mounted as a machine that boots does."""
    device = run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    try:
        with mounted(device) as host:
            yield host
    finally:
        run("losetup", "-d", device)


def check(story: Story, position: int, host: Path, repository: Path) -> None:
    """That everything promised until then is there after the boot."""
    made = start(host / "state", repository)
    try:
        known = {volume["name"]: volume for volume in made.call("volume.list")["volumes"]}
        for at, name, size in story.volumes:
            if at <= position:
                assert known[name]["size_bytes"] == size
        for kind in ("ext4", "xfs"):
            promised = [(name, content) for at, of, name, content in story.files if of == kind and at <= position]
            if promised:
                device = made.call("volume.attach", name=kind)["device"]
                with mounted(device) as folder:
                    for name, content in promised:
                        assert (folder / name).read_bytes() == content, f"{kind}: {name}"
                run(*(["e2fsck", "-fn"] if kind == "ext4" else ["xfs_repair", "-n"]), device)
        if "raw" in known:
            check_blocks(story, position, made.call("volume.attach", name="raw")["device"])
        if position >= story.cut:
            shown = made.wait_snapshot("s")
            assert shown["state"] == "failed"
            assert "lost its power" in shown["error"]["message"]
            markers = list(repository.glob("snapshots/*/pending.json"))
            assert all(path.with_name("manifest.json").exists() for path in markers), "what was running is not fenced"
            made.call("snapshot.create", volume="ext4", name="next")
    finally:
        made.stop()


@pytest.fixture(scope="module")
def lost(request: pytest.FixtureRequest) -> Iterator[tuple[LogDisk, Story, Path, Path]]:
    """The disk's log, what was promised, a folder for images, and the repository when the power went."""
    folder = Path(tempfile.mkdtemp(prefix="stillframe-test-", dir="/var/tmp"))
    repository = folder / "repository"
    repository.mkdir()
    try:
        with logdisk(folder, HOST) as disk:
            run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk.device)
            with mounted(disk.device) as host:
                story = play(disk, host, repository)
        yield disk, story, folder, repository
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def moments(story: Story, dice: random.Random) -> list[int]:
    """Positions after a volume was made, each right then; after the last of them at random, and right after promises."""
    made = [at for at, *_ in story.volumes]
    first, last = made[-1], max(at for at, *_ in story.files)
    promises = [at for at, *_ in story.files] + [at for at, _ in story.flushed] + [story.cut]
    return [*made, *(dice.randrange(first, last) for _ in range(MOMENTS // 2)), *dice.sample(promises, MOMENTS // 2)]


@pytest.mark.parametrize("number", range(len(SIZES) + MOMENTS))
def test_the_power_goes(lost: tuple[LogDisk, Story, Path, Path], number: int) -> None:
    disk, story, folder, repository = lost
    position = moments(story, random.Random(7))[number]
    image, store = folder / f"crash-{number}", folder / f"repository-{number}"
    shutil.copytree(repository, store)
    lose_power(disk, image, position, random.Random(number))
    with host_of(image) as host:
        check(story, position, host, store)
    image.unlink()
