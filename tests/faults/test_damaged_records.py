"""A session's record on the node's disk is damaged: it is left out; no device and no other snapshot pays for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from driver.core.ids import snapshot_id
from driver.core.sizes import MIB
from tests.engines import Engine, engine
from tests.oracle import LoggedWriter, fill
from tests.waiting import wait_until

SIZE = 32 * MIB


@pytest.fixture
def one() -> Iterator[Engine]:
    with engine("--upload-rate", "4Mi") as made:
        yield made


@pytest.mark.parametrize("is_running", [False, True])
def test_a_session_with_a_damaged_record_is_left_out(one: Engine, is_running: bool) -> None:
    device = one.volume("v", SIZE)
    if is_running:
        fill(device, 32 * MIB)
    one.call("snapshot.create", volume="v", name="s")
    if not is_running:
        assert one.wait_snapshot("s")["state"] == "committed"
    record = one.state / "sessions" / snapshot_id("s") / "session.json"
    record.write_text(record.read_text()[:-2])
    with LoggedWriter(device, SIZE, seed=1) as writer:
        os.kill(one.call("engine.info")["pid"], signal.SIGKILL)
        one.wait_ready()
        count = writer.acknowledged
        wait_until(lambda: writer.acknowledged > count)
        assert "a session is left out" in one.log.read_text()
        wait_until(lambda: not any(key.startswith("sweep-") for key in one.processes("v")))
        one.call("snapshot.create", volume="v", name="next")
        assert one.wait_snapshot("next")["state"] == "committed"
