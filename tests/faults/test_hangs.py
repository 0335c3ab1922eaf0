"""Processes that do not die but stand still: noticed, killed, replaced."""

from __future__ import annotations

import os
import signal
import time

import pytest

from driver.core.sizes import MIB
from tests.engines import Engine, engine
from tests.faults.test_deaths import senders, wait
from tests.oracle import LoggedWriter, fill, read_device, state_in
from tests.soak.killer import stop_within_seal

SIZE = 64 * MIB


def sweeper(made: Engine) -> int:
    return next(pid for key, pid in made.processes("v").items() if key.startswith("sweep"))


@pytest.mark.parametrize("victim", ["sweeper", "sweeper within a seal", "sender"])
def test_a_session_outlives_a_hung(victim: str) -> None:
    """The process is stopped (SIGSTOP) for good; within a seal a writer may wait for the lock that it holds."""
    with engine("--upload-rate", "24Mi") as made:
        device = made.volume("v", SIZE)
        fill(device, SIZE)
        start = bytes(read_device(device, SIZE))
        with LoggedWriter(device, SIZE, seed=4) as writer:
            time.sleep(0.2)
            first = writer.acknowledged
            made.call("snapshot.create", volume="v", name="s")
            last = writer.begun
            time.sleep(0.8)  # the sender is there
            hung = senders(made)[0] if victim == "sender" else sweeper(made)
            if victim == "sweeper within a seal":
                assert stop_within_seal(hung)
            else:
                os.kill(hung, signal.SIGSTOP)
            shown = wait(made)
        assert shown["state"] == "committed", shown
        assert not os.path.exists(f"/proc/{hung}"), "it was replaced"
        k = state_in(read_device(made.restore("s", "restored"), SIZE), start, writer.log, first, last)
        assert k is not None
