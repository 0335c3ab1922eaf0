"""Engine and transfer supervisor as two programs, as in two containers of a pod, with the repositories named elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.core.errors import EngineUnavailable
from driver.core.exitcodes import exit_code
from driver.core.sizes import MIB
from tests.engines import Engine, run
from tests.oracle import fill, read_device
from tests.waiting import wait_until

SIZE = 64 * MIB
CLI = (sys.executable, "-m", "driver.cli.main")


class Apart:
    """`stillframe engine run --without-transfer` and `stillframe engine transfer` on one state folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "repository").mkdir()
        self.repositories = folder / "repositories.toml"
        self.repositories.write_text(f'[repositories.elsewhere]\nurl = "file://{folder}/repository"\n')
        self.environment = {**os.environ, "STILLFRAME_REPOSITORIES": str(self.repositories)}
        self.engine = Engine(folder / "state")
        self.transfer: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.engine.log.open("ab") as log:
            return subprocess.Popen(
                [*CLI, "--state", str(self.engine.state), "engine", *arguments], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=self.environment,
            )  # fmt: skip

    def start_transfer(self) -> None:
        self.transfer = self.start("transfer")

    def start_engine(self) -> None:
        self.engine.process = self.start("run", "--without-transfer", "--grace", "2", "--upload-rate", "8Mi")
        wait_until(lambda: self.engine.listens("engine.sock"), told=self.engine.log.read_text)

    def kill_transfer(self) -> None:
        assert self.transfer is not None
        self.transfer.kill()
        self.transfer.wait(10)


@pytest.fixture
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    made = Apart(tmp_path_factory.mktemp("apart"))
    made.start_transfer()
    made.start_engine()
    try:
        yield made
    finally:
        made.engine.clean()
        made.kill_transfer()


def test_a_snapshot_outlives_the_transfer_supervisor_of_another_container(apart: Apart) -> None:
    assert apart.engine.call("engine.info")["processes"]["transfer"] == 0
    device = apart.engine.volume("v", SIZE)
    fill(device, SIZE)
    before = bytes(read_device(device, SIZE))
    apart.engine.call("snapshot.create", volume="v", name="s")
    run("dd", "if=/dev/zero", f"of={device}", "bs=1M", f"count={SIZE // MIB}", "oflag=direct", "status=none")
    apart.kill_transfer()
    assert apart.engine.call("snapshot.show", snapshot="s")["state"] == "uploading"
    apart.start_transfer()
    assert apart.engine.wait_snapshot("s")["state"] == "committed"
    assert bytes(read_device(apart.engine.restore("s", "w"), SIZE)) == before


def test_repositories_are_read_where_the_environment_says_and_again_at_each_job(apart: Apart) -> None:
    (found,) = apart.engine.call("engine.info")["repositories"]
    assert found["name"] == "elsewhere" and not (apart.engine.state / "repositories.toml").exists()
    apart.engine.volume("v", MIB)
    apart.engine.call("snapshot.create", volume="v", name="s")
    apart.engine.wait_snapshot("s")
    apart.repositories.write_text(apart.repositories.read_text().replace("elsewhere", "renamed"))
    assert [item["name"] for item in apart.engine.call("engine.info")["repositories"]] == ["renamed"]
    assert [item["name"] for item in apart.engine.call("snapshot.list", repository="renamed")["snapshots"]] == ["s"]


def test_one_that_stands_still_is_found_out_by_the_check(apart: Apart) -> None:
    """Which a container's liveness probe does; the engine cannot kill what is in another one."""

    def check() -> int:
        return apart.start("transfer", "--check").wait(600)

    assert apart.transfer is not None
    assert check() == 0
    apart.transfer.send_signal(signal.SIGSTOP)
    assert check() == exit_code(EngineUnavailable(""))
    apart.kill_transfer()
    assert check() == 0, "it is only being started"
    apart.start_transfer()
