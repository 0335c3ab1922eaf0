"""Loop devices on files of their own, and a folder for mounts; all is taken away again, by number, whatever a test did."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.host import freeze, kernel, mountinfo
from tests.engines import run


class Disks:
    """Devices are known by their nodes, /dev/loopN; the file below is `file(device)`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._sequences: dict[str, str] = {}

    def new(self, size_bytes: int, sector: int = 512) -> str:
        """A device full of zeros, on a sparse file."""
        file = self.folder / f"disk-{len(self._files)}"
        file.touch()
        os.truncate(file, size_bytes)
        return self.attach(file, sector)

    def attach(self, file: Path, sector: int = 512) -> str:
        device = run("losetup", "--find", "--show", "--sector-size", str(sector), str(file)).strip()
        self._files[device] = file
        self._sequences[device] = self._sequence(device)
        return device

    def _sequence(self, device: str) -> str:
        """What tells this attachment from every other one of the same number."""
        return (Path("/sys/block") / os.path.basename(device) / "diskseq").read_text()

    def file(self, device: str) -> Path:
        return self._files[device]

    def resize(self, device: str, size_bytes: int) -> None:
        os.truncate(self._files[device], size_bytes)
        run("losetup", "--set-capacity", device)

    def target(self, name: str = "target") -> str:
        """A path to mount at; there is nothing yet."""
        return str(self.folder / name)

    def clean(self) -> None:
        for mount in reversed(mountinfo.read()):
            if mount.target.startswith(f"{self.folder}/"):
                with contextlib.suppress(OSError):
                    freeze.thaw(mount.target)
                kernel.umount(mount.target, kernel.MNT_DETACH)
        for device, sequence in self._sequences.items():
            if self._sequence(device) != sequence:
                continue  # it is another's by now
            subprocess.run(["blockdev", "--setrw", device], check=False, capture_output=True)  # it would outlive the file
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def new_disks() -> Iterator[Disks]:
    made = Disks(Path(os.path.realpath(tempfile.mkdtemp(prefix="stillframe-disks-", dir="/var/tmp"))))
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def disks() -> Iterator[Disks]:
    with new_disks() as made:
        yield made
