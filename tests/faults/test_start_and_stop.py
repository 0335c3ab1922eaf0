"""How an engine starts and stops: beside others, with devices in use, after a kill, when a part of it eats memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from driver.core.sizes import MIB
from driver.engine.settings import CANNOT_START
from driver.host.cgroup import limited
from tests.engines import Engine, engine, mounted, run
from tests.oracle import LoggedWriter, fill, read_device
from tests.waiting import wait_until

SIZE = 32 * MIB


def test_with_nothing_attached_it_stops_at_once() -> None:
    with engine("--grace", "600") as made:
        made.call("volume.create", name="v", size_bytes=SIZE)
        made.signal(signal.SIGTERM)
        assert made.ended() == 0
        assert not os.path.ismount(made.state / "dev")


def record_of(made: Engine, name: str) -> Path:
    return made.state / "volumes" / str(made.call("volume.show", name=name)["id"]) / "volume.json"


def test_what_hinders_a_start_is_the_exit_code(tmp_path: Path) -> None:
    with engine() as made:
        made.call("volume.create", name="v", size_bytes=SIZE)
        record = made.state / "state.json"
        made.stop()
        command = [sys.executable, "-m", "driver.engine", "--state", str(made.state)]
        assert subprocess.run([*command, "--processes", "99"], timeout=150, check=False).returncode == 2
        content = record.read_text()
        record.write_text("{")
        assert subprocess.run(command, timeout=150, check=False).returncode == 9
        record.write_text(content)
        made.start()
    run("mount", "-t", "tmpfs", "-o", "ro", "nothing", str(tmp_path))
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-m", "driver.engine.service", "--state", str(tmp_path / "state")]
            command += ["--keeper", str(theirs.fileno())]
            done = subprocess.run(command, pass_fds=[theirs.fileno()], timeout=150, check=False)
            assert done.returncode == CANNOT_START + 14
    finally:
        run("umount", str(tmp_path))


def kill_service(made: Engine) -> None:
    """For good: wait until the next one has said that it cannot start."""
    made.state.joinpath("state.json").write_text("{")
    said = made.log.read_text().count("is not JSON")
    os.kill(made.call("engine.info")["processes"]["service"], signal.SIGKILL)
    wait_until(lambda: made.log.read_text().count("is not JSON") > said)


def test_a_service_that_cannot_start_again_takes_no_device_away() -> None:
    with engine() as made:
        with LoggedWriter(made.volume("v", SIZE), SIZE, seed=11) as writer:
            content = (made.state / "state.json").read_text()
            kill_service(made)
            writer.go_on()
            (made.state / "state.json").write_text(content)
            made.wait_ready()
            kill_service(made)
        made.signal(signal.SIGTERM)
        assert made.ended() == 9


def test_without_a_service_it_serves_on_until_the_device_is_free() -> None:
    with engine("--grace", "600") as made:
        device = made.volume("v", SIZE)
        run("mkfs.ext4", "-q", device)
        with mounted(device) as folder:
            kill_service(made)
            made.signal(signal.SIGTERM)
            said = made.log.read_text().count("is not JSON")
            wait_until(lambda: made.log.read_text().count("is not JSON") > said + 1)
            (folder / "file").write_text("still served")
            os.sync()
            assert made.runs()
        assert made.ended() == 9


def test_without_a_service_it_stops_when_the_grace_is_over() -> None:
    with engine("--grace", "1") as made:
        device = made.volume("v", SIZE)
        with open(device, "rb"):
            kill_service(made)
            made.signal(signal.SIGTERM)
            assert made.ended() == 9


def test_with_a_device_in_use_it_serves_until_that_is_free() -> None:
    with engine("--grace", "600") as made:
        device = made.volume("v", SIZE)
        run("mkfs.ext4", "-q", device)
        with mounted(device) as folder:
            made.signal(signal.SIGTERM)
            for number in range(20):
                (folder / f"f{number}").write_text("still served")
                os.sync()
            assert made.runs()
        assert made.ended() == 0


def test_a_stop_is_not_lost_with_the_service_that_dies_just_then() -> None:
    """The keeper finds both signals at once: the service's death is not yet seen by its socket."""
    with engine("--grace", "600") as made:
        device = made.volume("v", SIZE)
        run("mkfs.ext4", "-q", device)
        service = Path(f"/proc/{made.call('engine.info')['pid']}")
        with mounted(device) as folder:
            made.signal(signal.SIGSTOP)
            os.kill(int(service.name), signal.SIGKILL)
            wait_until(lambda: "State:\tZ" in (service / "status").read_text())
            made.signal(signal.SIGTERM)
            made.signal(signal.SIGCONT)
            made.wait_ready()
            (folder / "file").write_text("still served")
            os.sync()
        assert made.ended() == 0


def test_a_stop_needs_no_service_where_nothing_is_held() -> None:
    """One that fails for a reason that nobody foresaw is started again and again."""
    with engine() as made:
        made.call("volume.create", name="v", size_bytes=SIZE)
        record = record_of(made, "v")
        record.unlink()
        record.mkdir()
        os.kill(made.call("engine.info")["pid"], signal.SIGKILL)
        wait_until(lambda: made.log.read_text().count("IsADirectoryError") > 1)
        made.signal(signal.SIGTERM)
        assert made.ended() == 0


def test_when_the_grace_is_over_it_stops_all_the_same() -> None:
    with engine("--grace", "1") as made:
        device = made.volume("v", SIZE)
        with open(device, "rb"):
            made.signal(signal.SIGTERM)
            made.ended()
        made.start()
        assert len(read_device(made.call("volume.attach", name="v")["device"], SIZE)) == SIZE


def backing_of(left: Path) -> str:
    """The file of a loop device by its folder in /sys; nothing, if the device is gone."""
    with contextlib.suppress(OSError):
        return (left / "backing_file").read_text()
    return ""


def test_a_killed_engine_cleans_up_after_itself_and_nobody_else() -> None:
    with engine() as one, engine() as other:
        run("mkfs.ext4", "-q", one.volume("v", SIZE))
        with LoggedWriter(other.volume("v", SIZE), SIZE, seed=9) as writer:
            (record,) = (one.state / "run/loops").iterdir()
            left = Path(f"/sys/block/loop{json.loads(record.read_text())['number']}/loop")
            assert left.exists()
            one.kill()
            one.start()
            wait_until(lambda: str(one.state) not in backing_of(left))  # the number may be another's by now
            assert [*(one.state / "run/loops").iterdir(), *(one.state / "dev").iterdir()] == []
            assert one.call("volume.show", name="v")["attached"] is False
            device = one.call("volume.attach", name="v")["device"]
            with mounted(device):
                pass
            writer.go_on()


def memory_groups_work() -> bool:
    with contextlib.suppress(OSError, KeyError):
        limited("stillframe-test", 64 * MIB).remove()
        return True
    return False


def group_of(pid: int) -> Path:
    """The control group that limits the memory of a transfer process."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "stillframe-transfer" in path:
            return Path(f"/sys/fs/cgroup/{controllers}{path}" if controllers else f"/sys/fs/cgroup{path}")
    raise AssertionError("it is in no group of its own")


HOG = "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nkept = [bytearray(b'x' * 1048576) for _ in range(1024)]"


def test_a_transfer_process_that_eats_memory_is_killed_alone() -> None:
    """The one that eats is put beside the sender, into the group that it would have been in."""
    if not memory_groups_work():
        pytest.skip("control groups cannot be made here")
    with engine("--transfer-memory", str(256 * MIB), "--upload-rate", "8Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        transfer = made.call("engine.info")["processes"]["transfer"]
        group = group_of(transfer)
        with LoggedWriter(device, SIZE, seed=10) as writer:
            made.call("snapshot.create", volume="v", name="s")
            hog = subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert hog.stdout is not None
            hog.stdout.readline()
            (group / "cgroup.procs").write_text(str(hog.pid))
            hog.communicate(b"\n", timeout=120)
            assert hog.returncode == -signal.SIGKILL
            assert str(transfer) in (group / "cgroup.procs").read_text().split()
            writer.go_on()
            assert made.wait_snapshot("s")["state"] == "committed"
        made.stop()
        assert not group.exists()


def test_it_does_not_hold_what_was_mounted_when_it_started() -> None:
    with engine() as first:
        device = first.volume("v", SIZE)
        run("mkfs.ext4", "-q", device)
        with mounted(device) as folder, engine():
            # where the host's root is private, the second engine's namespace would keep the file system mounted
            run("umount", str(folder))
            first.call("volume.detach", name="v")
            assert not Path(device).exists()
            run("mount", "-t", "tmpfs", "nothing", str(folder))
