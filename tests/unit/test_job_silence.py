"""When a transfer process counts as hung: by looks at its pipe, not by a clock: that goes on while a machine stands."""

from __future__ import annotations

import os
import select

import pytest

from driver.transfer import jobs


class Poll:
    """In the place of select.poll: every 30th look finds something, however long the others took."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def register(self, fd: int, events: int) -> None:
        pass

    def poll(self, milliseconds: float) -> list[int]:
        self.asked.append(milliseconds)
        return [1] if len(self.asked) % 30 == 0 else []


def test_who_tells_something_now_and_then_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    poll = Poll()
    monkeypatch.setattr(select, "poll", lambda: poll)
    reading, writing = os.pipe()
    os.write(writing, b"a\n")
    lines = jobs._lines(reading, lambda: pytest.fail("it was not silent for long"))
    assert next(lines) == b"a"
    os.write(writing, b"b\n")
    assert next(lines) == b"b"
    assert max(poll.asked) <= 1000, "a look must be short: one that falls together with a standstill of the machine is one"
    for fd in (reading, writing):
        os.close(fd)


def test_who_hangs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0.001)
    reading, writing = os.pipe()
    assert list(jobs._lines(reading, lambda: os.close(writing))) == []
    os.close(reading)
