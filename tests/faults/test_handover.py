"""A new keeper takes everything over from the one that runs, while the devices are in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from driver.core import messages
from driver.core.errors import Unsupported
from driver.core.sizes import MIB
from driver.engine import handover
from tests.engines import Engine, engine
from tests.faults.stops import engine_that_stops
from tests.oracle import LoggedWriter, fill, read_device, state_in

SIZE = 64 * MIB
ROOT = Path(__file__).resolve().parents[2]


def fio(device: str, seconds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["fio", "--name=f", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--ioengine=libaio",
         "--direct=1", "--verify=crc32c", "--verify_backlog=512", "--verify_fatal=1", "--verify_state_save=0",
         "--time_based", f"--runtime={seconds}", "--output-format=json"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def attempt(made: Engine, *code: str) -> subprocess.CompletedProcess[str]:
    """A second engine that is to take over, with something about it changed."""
    program = "; ".join([*code, "from driver.engine.__main__ import main", "main()"])
    return subprocess.run(
        [sys.executable, "-c", program, "--state", str(made.state), "--take-over"],
        capture_output=True, text=True, timeout=200, check=False, cwd=ROOT,
    )  # fmt: skip


def test_a_running_session_and_busy_devices_do_not_notice() -> None:
    """Twice in a row: fio at depth 16 sees no error, the snapshot is exact."""
    with engine("--upload-rate", "16Mi") as made:
        device = made.volume("v", SIZE)
        busy = fio(made.volume("busy", SIZE), 8)
        fill(device, SIZE)
        start = bytes(read_device(device, SIZE))
        with LoggedWriter(device, SIZE, seed=5) as writer:
            time.sleep(0.2)
            first = writer.acknowledged
            made.call("snapshot.create", volume="v", name="s")
            last = writer.begun
            for _ in range(2):
                time.sleep(0.5)
                assert made.take_over() == 0
                writer.go_on()
            shown = made.wait_snapshot("s")
        assert shown["state"] == "committed", shown
        k = state_in(read_device(made.restore("s", "restored"), SIZE), start, writer.log, first, last)
        assert k is not None
        output = busy.communicate(timeout=200)[0]
        assert busy.returncode == 0, output
        assert json.loads(output[output.index("{") :])["jobs"][0]["error"] == 0
        made.call("volume.detach", name="v")
        made.call("volume.attach", name="v")


def test_without_an_engine_it_is_a_start() -> None:
    with engine() as made:
        made.stop()
        made.start(None, "--take-over")
        assert made.volume("v", SIZE)


@pytest.mark.parametrize("change", ["driver.engine.handover.VERSION = 2", "driver.volume.layout.VERSION += 1"])
def test_a_version_that_cannot_be_continued_leaves_the_old_one_at_work(change: str) -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        with LoggedWriter(device, SIZE, seed=6) as writer:
            module = change.split(" ")[0].rpartition(".")[0]
            refused = attempt(made, f"import {module}", change)
            assert refused.returncode != 0
            assert "goes on" in refused.stderr
            assert "hint: detach the volumes, stop it" in refused.stderr
            writer.go_on()
        made.wait_ready()
        assert made.call("volume.show", name="v")["attached"]


def test_who_asks_in_another_version_is_told_so_and_disturbs_nobody() -> None:
    with engine() as made:
        before = made.call("engine.info")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(150)
            peer.connect(str(made.state / "run/keeper.sock"))
            with pytest.raises(Unsupported, match="it goes on"):
                messages.call(peer, {"call": "take_over", "handover": handover.VERSION + 1})
        assert made.call("engine.info")["pid"] == before["pid"]


@pytest.mark.parametrize("last", ["take_over", "ready", "dead"])
def test_a_successor_that_dies_on_the_way_leaves_the_old_one_at_work(last: str) -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        with LoggedWriter(device, SIZE, seed=7) as writer:
            peer = handover.ask(str(made.state / "run/keeper.sock"))
            assert peer is not None
            if last != "take_over":
                handover.receive(peer)
                handover.tell(peer, "ready")
            if last == "dead":
                handover.expect(peer, "dead")
            peer.close()
            time.sleep(0.5)
            writer.go_on()
        made.wait_ready()
        assert made.take_over() == 0  # and it can be taken over by a better one


@pytest.mark.parametrize("at", ["call keeper.py _end_kept", "return keeper.py _end_kept"])
def test_a_keeper_that_dies_on_the_way_leaves_its_volumes_to_its_successor(at: str) -> None:
    with engine_that_stops(at, "--upload-rate", "16Mi") as (made, stopped):
        device = made.volume("v", SIZE)
        start = bytes(read_device(device, SIZE))
        with LoggedWriter(device, SIZE, seed=11) as writer:
            first = writer.acknowledged
            made.call("snapshot.create", volume="v", name="s")
            last = writer.begun
            successor = threading.Thread(target=made.take_over)
            successor.start()
            os.kill(stopped(), signal.SIGKILL)
            successor.join()
            made.wait_ready()
            writer.go_on()
            assert made.wait_snapshot("s")["state"] == "committed"
        assert state_in(read_device(made.restore("s", "restored"), SIZE), start, writer.log, first, last) is not None
        made.call("volume.detach", name="v")


def test_a_new_version_takes_over_from_an_old_one(tmp_path: Path) -> None:
    """The old engine is another tree, of another version."""
    for package in ("driver", "csi"):
        shutil.copytree(ROOT / package, tmp_path / package)
    version = tmp_path / "driver/__init__.py"
    version.write_text(version.read_text().replace("__version__ = ", '__version__ = "0.0.1"  # was '))
    with engine() as made:
        made.stop()
        made.code = tmp_path
        made.start()
        assert made.call("engine.info")["version"] == "0.0.1"
        device = made.volume("v", SIZE)
        with LoggedWriter(device, SIZE, seed=8):
            made.code = None
            assert made.take_over() == 0
            assert made.call("engine.info")["version"] != "0.0.1"
