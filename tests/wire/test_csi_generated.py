"""The modules under csi/ are what the generator makes of csi/*.proto today, and nothing else lies beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def generated(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}


def test_the_committed_modules_are_generated_from_the_committed_interfaces(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["bash", str(ROOT / ".ci/proto.sh"), str(tmp_path)], env=environment, timeout=600, check=True)
    fresh, committed = generated(tmp_path / "csi"), generated(ROOT / "csi")
    assert sorted(fresh) == sorted(committed)
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert not stale, "run `make proto`, and see that requirements.lock's versions are installed"
