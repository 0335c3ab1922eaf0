"""What dies, and what is not lost: real kill -9 while a volume is written and snapshotted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driver.core.errors import StillframeError
from driver.core.sizes import MIB
from tests.engines import Engine, engine
from tests.oracle import LoggedWriter, fill, read_device, state_in
from tests.soak.killer import children
from tests.waiting import wait_until

SIZE = 32 * MIB


def kill(pid: int) -> None:
    """Nothing happens to a process that does not run at this moment: its id is 0."""
    if not pid:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def senders(made: Engine) -> list[int]:
    """The pids of this engine's senders, once they have named themselves (comm)."""
    found = []
    for pid in children(made.call("engine.info")["processes"]["transfer"]):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "sf-send":
                found.append(pid)
    return found


VICTIMS: dict[str, Callable[[Engine], list[int]]] = {
    "volume process": lambda made: [made.processes("v")["serve-0"]],
    "sweeper": lambda made: [pid for key, pid in made.processes("v").items() if key.startswith("sweep")],
    "sender": senders,
    "transfer supervisor": lambda made: [made.call("engine.info")["processes"]["transfer"]],
    "engine service": lambda made: [made.call("engine.info")["pid"]],
}


@pytest.mark.parametrize("victim", list(VICTIMS))
def test_a_session_outlives(victim: str) -> None:
    """The snapshot is exact, and the writer notices nothing, although the process is killed again and again."""
    with engine("--upload-rate", "4Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        start = bytes(read_device(device, SIZE))
        kills = 0
        with LoggedWriter(device, SIZE, seed=1) as writer:
            time.sleep(0.2)
            first = writer.acknowledged
            made.call("snapshot.create", volume="v", name="s")
            last = writer.begun
            deadline = time.monotonic() + 60
            while kills < 4 and time.monotonic() < deadline:
                with contextlib.suppress(StillframeError, OSError):
                    for pid in VICTIMS[victim](made):
                        if pid:
                            kill(pid)
                            kills += 1
                    if made.call("snapshot.show", snapshot="s")["state"] != "uploading":
                        break
                time.sleep(0.7)
            shown = wait(made)
        assert shown["state"] == "committed", shown
        assert kills >= 2
        k = state_in(read_device(made.restore("s", "restored"), SIZE), start, writer.log, first, last)
        assert k is not None


def wait(made: Engine, snapshot: str = "s") -> dict[str, Any]:
    """As `wait_snapshot`, with an engine service that may be starting."""

    def ended() -> dict[str, Any] | None:
        with contextlib.suppress(StillframeError, OSError):
            return made.wait_snapshot(snapshot)
        return None

    return wait_until(ended, told=made.log.read_text)


def test_acknowledged_writes_survive_a_volume_process_at_any_moment() -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        start = bytes(read_device(device, SIZE))
        with LoggedWriter(device, SIZE, seed=2) as writer:
            killed = 0
            for _ in range(4):
                time.sleep(0.5)
                killed = wait_until(lambda: another(made, "v", "serve-0", killed))  # noqa: B023
                kill(killed)
        state = state_in(read_device(device, SIZE), start, writer.log, len(writer.log), len(writer.log))
        assert state == len(writer.log)
        wait_until(lambda: deaths(made) == 4, told=lambda: f"{deaths(made)} deaths are known")


def another(made: Engine, volume: str, key: str, before: int) -> int:
    """The pid of a kept process, once it is not `before`, which was killed; 0 meanwhile."""
    pid = made.processes(volume)[key]
    return pid if pid != before else 0


def deaths(made: Engine) -> int:
    held = made.call("engine.info")["processes"]["volumes"].values()
    return sum(process["deaths"] for volume in held for process in volume["processes"])


def test_a_volume_process_that_cannot_live_kills_its_volume_and_no_other() -> None:
    with engine() as made:
        device = made.volume("v", SIZE)
        other = made.volume("other", SIZE)
        assert conditions(made, "v") == []
        kill_for_good(made, "v", "serve-0")
        with pytest.raises(OSError, match="Input/output"):
            read_device(device, SIZE)
        assert len(read_device(other, SIZE)) == SIZE
        assert (conditions(made, "v"), conditions(made, "other")) == (["DeviceDead"], [])
        os.kill(made.call("engine.info")["pid"], signal.SIGKILL)
        made.wait_ready()
        assert conditions(made, "v") == ["DeviceDead"]
        made.call("volume.detach", name="v")
        device = made.call("volume.attach", name="v")["device"]
        assert len(read_device(device, SIZE)) == SIZE
        assert conditions(made, "v") == []


def conditions(made: Engine, volume: str) -> list[str]:
    return [condition["reason"] for condition in made.call("volume.show", name=volume)["conditions"]]


def kill_for_good(made: Engine, volume: str, key: str) -> None:
    """Kill a process whenever it was started again, until it is not, or is forgotten."""

    def kill_again() -> bool:
        kill(made.processes(volume).get(key, 0))
        held = made.call("engine.info")["processes"]["volumes"][made.call("volume.show", name=volume)["id"]]
        return all(process["given_up"] for process in held["processes"] if process["key"] == key)

    wait_until(kill_again)


def test_a_sweeper_that_cannot_live_fails_its_snapshot_and_no_device() -> None:
    with engine("--upload-rate", "1Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        (sweeper,) = [key for key in made.processes("v") if key.startswith("sweep-")]
        kill_for_good(made, "v", sweeper)
        assert conditions(made, "v") == []
        shown = made.wait_snapshot("s")
        assert (shown["state"], shown["error"]["message"]) == ("failed", "its sweeper died again and again")
        assert len(read_device(device, SIZE)) == SIZE


def test_a_session_outlives_the_end_of_its_volumes_device() -> None:
    """The volume process is given up; what was written until then is snapshotted all the same."""
    with engine("--upload-rate", "8Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        content = read_device(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        with contextlib.suppress(OSError), LoggedWriter(device, SIZE, seed=3):
            kill_for_good(made, "v", "serve-0")
        with pytest.raises(OSError, match="Input/output"):
            read_device(device, SIZE)
        assert made.wait_snapshot("s")["state"] == "committed"
        assert read_device(made.restore("s", "restored"), SIZE) == content
        made.call("volume.detach", name="v")
        made.call("volume.attach", name="v")
        made.call("snapshot.create", volume="v", name="next")
        assert made.wait_snapshot("next")["state"] == "committed"


def test_the_keepers_death_fails_the_session_and_says_why() -> None:
    with engine("--upload-rate", "1Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        content = read_device(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        made.kill()
        made.start(None, "--upload-rate", "1Gi")
        shown = made.wait_snapshot("s")
        assert (shown["state"], "engine was stopped" in shown["error"]["message"]) == ("failed", True)
        device = made.call("volume.attach", name="v")["device"]
        assert read_device(device, SIZE) == content
        made.call("snapshot.create", volume="v", name="again")
        assert made.wait_snapshot("again")["state"] == "committed"


def test_a_disk_that_cannot_be_read_fails_the_snapshot() -> None:
    with engine("--upload-rate", "4Mi") as made:
        made.volume("v", 4 * SIZE)
        volume = made.call("volume.show", name="v")
        disk = made.state / "volumes" / volume["id"] / "disk"
        fill(disk, 4 * SIZE)
        made.call("snapshot.create", volume="v", name="s")
        os.truncate(disk, 8 * MIB)
        shown = made.wait_snapshot("s")
        assert shown["state"] == "failed"
        assert "disk" in shown["error"]["message"] or "disk" in shown["error"]["hint"]


def test_what_became_of_a_session_is_not_decided_while_its_repository_is_away() -> None:
    """A folder that is not mounted says nothing of what is in it."""
    with engine("--upload-rate", "1Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        made.call("snapshot.create", volume="v", name="s")
        made.kill()
        made.clean_devices()
        repository = made.state.parent / "repository"
        repository.rename(away := made.state.parent / "away")
        made.start()
        wait_until(lambda: "trying again" in made.log.read_text())
        assert made.call("snapshot.show", snapshot="s")["state"] == "uploading"
        away.rename(repository)
        shown = made.wait_snapshot("s")
        assert shown["state"] == "failed" and "lost its power" in shown["error"]["message"]
