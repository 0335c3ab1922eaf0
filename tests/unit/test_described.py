"""What is said of a snapshot that will never be."""

from __future__ import annotations

import pytest

from driver.core.errors import SnapshotFailed
from driver.rpc.described import check_alive


def found(state: str, error: SnapshotFailed | None = None) -> dict[str, object]:
    return {"name": "s", "state": state, "error": error.to_message() if error else None}


@pytest.mark.parametrize("error", [None, SnapshotFailed("it was ended before it was complete: it was deleted")])
def test_a_deleted_snapshot_is_called_deleted_whatever_it_was_before(error: SnapshotFailed | None) -> None:
    with pytest.raises(SnapshotFailed) as told:
        check_alive(found("deleted", error))
    assert (told.value.message, told.value.hint) == ("snapshot 's' was deleted", "take a new one, by another name")


def test_a_failed_snapshot_is_told_with_its_reason() -> None:
    with pytest.raises(SnapshotFailed, match="snapshot 's' failed: the disk is full"):
        check_alive(found("failed", SnapshotFailed("the disk is full")))


@pytest.mark.parametrize("state", ["committed", "uploading"])
def test_one_that_is_complete_or_in_the_making_is_let_pass(state: str) -> None:
    check_alive(found(state))
