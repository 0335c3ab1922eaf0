"""`make e2e` on kind, as far as it goes without a container engine: the real kind reads e2e/kind.yaml, starts its nodes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.kind import CLUSTER, Kind

HERE = Path(__file__).parent


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What docker is told to run, once kind is; both are on PATH. The first time, kind is fetched and compiled."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.skip("Go is not installed; it compiles kind")
    programs = tmp_path / "bin"
    programs.mkdir()
    subprocess.run([go, "build", "-o", programs / "kind", "sigs.k8s.io/kind"], cwd=HERE, check=True, timeout=1200)
    shutil.copy(HERE / "docker", programs)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_the_cluster_is_a_control_plane_and_two_nodes(runs: Path) -> None:
    machines = Kind()
    with pytest.raises(subprocess.CalledProcessError) as ended:
        machines.up()
    machines.down()
    assert ended.value.cmd[:3] == ("kind", "create", "cluster")
    assert "control plane node" in ended.value.stderr, "it looks for the containers that it has made"
    roles = dict(re.findall(r"--name (\S+) .*--label io.x-k8s.kind.role=(\S+) ", runs.read_text()))
    assert roles == {
        f"{CLUSTER}-control-plane": "control-plane", f"{CLUSTER}-worker": "worker", f"{CLUSTER}-worker2": "worker",
    }  # fmt: skip
