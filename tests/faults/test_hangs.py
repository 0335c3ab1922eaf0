"""Processes that do not die but stand still: noticed, killed, replaced."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from driver.core.sizes import MIB
from tests.engines import Engine, engine
from tests.faults.test_deaths import senders, wait
from tests.oracle import LoggedWriter, fill, read_device, state_in
from tests.soak.killer import stop_within_seal
from tests.waiting import wait_until

SIZE = 64 * MIB


@dataclass(frozen=True)
class Session:
    """A snapshot in the making of a volume of the same name, which is written: the cut is between two of its writes."""

    name: str
    start: bytes
    writer: LoggedWriter
    first: int
    last: int


def begin(made: Engine, writing: contextlib.ExitStack, name: str) -> Session:
    """Returns when it has sealed something."""
    device = made.volume(name, SIZE)
    fill(device, SIZE)
    start = bytes(read_device(device, SIZE))
    writer = writing.enter_context(LoggedWriter(device, SIZE, seed=len(name)))
    wait_until(lambda: writer.acknowledged > 50)
    first = writer.acknowledged
    made.call("snapshot.create", volume=name, name=name)
    last = writer.begun
    wait_until(lambda: made.call("snapshot.show", snapshot=name)["session"]["swept_bytes"])
    return Session(name, start, writer, first, last)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended, be it reaped or not."""
    with contextlib.suppress(FileNotFoundError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_a_session_outlives_a_transfer_supervisor_that_hangs() -> None:
    """With it stands its sender, which dies before another one uses the session's buffers."""
    with engine("--upload-rate", "4Mi") as made:
        with contextlib.ExitStack() as writing:
            session = begin(made, writing, "v")
            wait_until(lambda: made.call("snapshot.show", snapshot="v")["uploaded_bytes"])
            (sender,) = senders(made)
            hung = made.call("engine.info")["processes"]["transfer"]
            os.kill(sender, signal.SIGSTOP)
            os.kill(hung, signal.SIGSTOP)
            assert wait(made, session.name)["state"] == "committed"
        assert not is_running(hung) and not is_running(sender), "they were replaced"
        image = read_device(made.restore(session.name, "restored"), SIZE)
        assert state_in(image, session.start, session.writer.log, session.first, session.last) is not None


def sweeper(made: Engine, volume: str) -> int:
    return next(pid for key, pid in made.processes(volume).items() if key.startswith("sweep"))


def test_sessions_outlive_what_hangs() -> None:
    """A sender, a sweeper, and one within a seal, for whose lock a writer may wait, are stopped (SIGSTOP) for good."""
    with engine("--upload-rate", "8Mi") as made:
        with contextlib.ExitStack() as writing:
            sessions = [begin(made, writing, "sender")]
            (sender,) = wait_until(lambda: senders(made))
            os.kill(sender, signal.SIGSTOP)
            sessions.append(begin(made, writing, "sweeper"))
            os.kill(sweeping := sweeper(made, "sweeper"), signal.SIGSTOP)
            sessions.append(begin(made, writing, "seal"))
            sealing = sweeper(made, "seal")
            wait_until(lambda: stop_within_seal(sealing))
            for session in sessions:
                assert wait(made, session.name)["state"] == "committed"
        assert not any(os.path.exists(f"/proc/{hung}") for hung in (sender, sweeping, sealing)), "they were replaced"
        for session in sessions:
            image = read_device(made.restore(session.name, f"{session.name}-restored"), SIZE)
            assert state_in(image, session.start, session.writer.log, session.first, session.last) is not None
