"""A record on the node's disk is damaged: what it is of is left out; no other volume and no other snapshot pays for it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.core.errors import DataCorrupt, NotFound
from driver.core.ids import snapshot_id
from driver.core.sizes import MIB
from tests.engines import Engine, engine, mounted, run
from tests.oracle import LoggedWriter, fill, read_device
from tests.waiting import wait_until

SIZE = 32 * MIB


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine("--upload-rate", "4Mi") as made:
        yield made


def cut_short(record: Path) -> None:
    record.write_text(record.read_text()[:-2])


def wrong_type(record: Path) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), "size_bytes": "many"}))


DAMAGES = [cut_short, wrong_type]


def restart_service(made: Engine) -> None:
    os.kill(made.call("engine.info")["pid"], signal.SIGKILL)
    made.wait_ready()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_volume_with_a_damaged_record_is_left_out(one: Engine, damage: Callable[[Path], None]) -> None:
    """Who names it is told of the file. Its device is served, and waited for at the end; mended, it is there again."""
    device, other = one.volume("v", SIZE), one.volume("w", SIZE)
    volume = one.call("volume.show", name="v")["id"]
    record = one.state / "volumes" / volume / "volume.json"
    content = record.read_text()
    run("mkfs.ext4", "-q", device)
    with mounted(device) as folder, LoggedWriter(other, SIZE, seed=1) as writer:
        damage(record)
        restart_service(one)
        assert "a volume is left out" in one.log.read_text() and str(record) in one.log.read_text()
        with pytest.raises(DataCorrupt, match=re.escape(str(record))) as told:
            one.call("volume.delete", name=volume)
        assert "backup" in (told.value.hint or "")
        with pytest.raises(NotFound):
            one.call("volume.show", name="v")
        writer.go_on()
        (folder / "file").write_text("still served")
        os.sync()
        one.call("snapshot.create", volume="w", name="s")
        assert one.wait_snapshot("s")["state"] == "committed"
    record.write_text(content)
    restart_service(one)
    one.call("volume.detach", name="v")
    with mounted(one.call("volume.attach", name="v")["device"]) as folder:
        assert (folder / "file").read_text() == "still served"


def test_a_device_of_a_volume_that_is_left_out_is_waited_for() -> None:
    with engine("--grace", "600") as made:
        device = made.volume("v", SIZE)
        run("mkfs.ext4", "-q", device)
        with mounted(device) as folder:
            cut_short(made.state / "volumes" / made.call("volume.show", name="v")["id"] / "volume.json")
            restart_service(made)
            made.signal(signal.SIGTERM)
            for number in range(20):
                (folder / f"f{number}").write_text("still served")
                os.sync()
            assert made.runs()
        assert made.ended() == 0


def test_of_two_volumes_of_one_name_one_is_left_out(one: Engine) -> None:
    first, second = (one.call("volume.create", name=name, size_bytes=SIZE)["id"] for name in ("v", "w"))
    record = one.state / "volumes" / second / "volume.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "name": "v"}))
    restart_service(one)
    kept = one.call("volume.show", name="v")["id"]
    with pytest.raises(DataCorrupt, match=f"has the name of volume {kept}"):
        one.call("volume.show", name=({first, second} - {kept}).pop())
    assert len(read_device(one.call("volume.attach", name="v")["device"], SIZE)) == SIZE


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_running", [False, True])
def test_a_session_with_a_damaged_record_is_left_out(
    one: Engine, is_running: bool, damage: Callable[[Path], None]
) -> None:
    device = one.volume("v", SIZE)
    if is_running:
        fill(device, 32 * MIB)
    one.call("snapshot.create", volume="v", name="s")
    if not is_running:
        assert one.wait_snapshot("s")["state"] == "committed"
    record = one.state / "sessions" / snapshot_id("s") / "session.json"
    with LoggedWriter(device, SIZE, seed=1) as writer:
        os.kill(service := one.call("engine.info")["pid"], signal.SIGSTOP)  # it writes no other record over this one
        damage(record)
        os.kill(service, signal.SIGKILL)
        one.wait_ready()
        writer.go_on()
        wait_until(lambda: "a session is left out" in one.log.read_text())
        wait_until(lambda: not any(key.startswith("sweep-") for key in one.processes("v")))
        one.call("snapshot.create", volume="v", name="next")
        assert one.wait_snapshot("next")["state"] == "committed"
