"""The soak at a tenth of its length: `make soak` runs ten minutes."""

from __future__ import annotations

from tests.soak.run import soak


def test_a_minute_of_everything_at_once() -> None:
    report = soak(60, seed=1)
    assert (report["mismatches"], report["io_errors"], report["given_up"]) == ([], [], 0)
    assert min(report["kills"].values()) >= 3
    assert len(report["kills"]) == 5
    assert report["replays"] >= 1
    assert report["most_deaths_of_one_process_in_10_s"] < 5
    assert report["snapshots_compared"] >= 4
