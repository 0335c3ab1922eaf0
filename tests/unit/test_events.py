"""What claims and VolumeSnapshots are told, and who is told it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from driver.controller.events import About, Content, about, claim_of, events, given_up, snapshot_of, text, unheard
from driver.core.ids import new_id
from driver.node.work import LATELY, is_wanted, restore, restored, upload
from driver.rpc.progress import Kind, Stage, Work, asked_for, pack, unpack

GIB = 1 << 30
UPLOAD = Work(Kind.UPLOAD, "main:1", "node-a:7", Stage.RUNNING, done=43 * GIB // 100, total=GIB)
CLAIM = claim_of("shop", "data", "uid-1")
SNAPSHOT = snapshot_of("shop", "monday", "uid-2")


def test_the_texts_say_how_far_it_is_and_what_to_do() -> None:
    assert text(UPLOAD) == "uploading: 42 %, 583.7 MiB left"
    assert text(Work(Kind.RESTORE, "pvc-1", "n:1", Stage.RUNNING, GIB, 4 * GIB)) == "restoring: 25 %, 3.0 GiB left"
    assert text(replace(UPLOAD, stage=Stage.DONE, uploaded=GIB, requests=70)) == "uploaded: 1.0 GiB in 70 requests"
    failed = replace(UPLOAD, stage=Stage.FAILED, message="the disk is full", fix="make room")
    assert text(failed) == (
        "failed: the disk is full; what to do: make room; then delete this VolumeSnapshot and take another one. "
        "The volume is unharmed"
    )
    assert "no reason is known; what to do: delete" in text(replace(failed, message="", fix=""))
    assert text(replace(UPLOAD, total=0, done=0)) == "uploading: 0 %, 0 B left"


def test_a_snapshot_and_its_claim_are_told_and_nobody_else() -> None:
    contents = [Content("main:1", SNAPSHOT), Content("main:2", snapshot_of("other", "x", "uid-3"))]
    bound = replace(CLAIM, volume="node-a:7")
    assert about([UPLOAD], contents, [bound, claim_of("shop", "else", "uid-9")]) == {
        "main:1": About(SNAPSHOT, CLAIM.subject)
    }
    assert about([UPLOAD], contents, [CLAIM]) == {"main:1": About(SNAPSHOT, None)}
    assert about([UPLOAD], [], [bound]) == {}, "what a command began, and a clone, is nobody's in Kubernetes"
    wanted = Work(Kind.RESTORE, "pvc-uid-1", "node-a:8", Stage.RUNNING)
    assert about([wanted, replace(wanted, id="pvc-uid-0")], contents, [CLAIM]) == {"pvc-uid-1": About(None, CLAIM.subject)}


def test_the_same_thing_is_told_in_the_same_event() -> None:
    first, claimed = events(UPLOAD, About(SNAPSHOT, CLAIM.subject))
    later, _ = events(replace(UPLOAD, done=GIB // 2), About(SNAPSHOT, CLAIM.subject))
    failed, _ = events(replace(UPLOAD, stage=Stage.FAILED), About(SNAPSHOT, CLAIM.subject))
    assert first.name == later.name and first.message != later.message
    assert len({first.name, claimed.name, failed.name}) == 3
    assert (first.is_warning, failed.is_warning, failed.reason) == (False, True, "SnapshotFailed")
    assert claimed.message == "snapshot monday uploading: 42 %, 583.7 MiB left"
    assert len(events(UPLOAD, About(snapshot_of("shop", "n" * 253, "u"), None))[0].name) <= 253


def test_what_no_node_tells_any_more_is_looked_up() -> None:
    wanted = Work(Kind.RESTORE, "pvc-1", "node-a:8", Stage.RUNNING)
    other = replace(UPLOAD, id="main:2")
    assert unheard([UPLOAD, other, wanted], [replace(other, stage=Stage.DONE)]) == [UPLOAD]


def session(state: str, age: timedelta, **more: Any) -> dict[str, Any]:
    return {
        "handle": "main:1", "state": state, "created": (NOW - age).isoformat(), "size_bytes": GIB, "uploaded_bytes": 5,
        "requests": 3, "progress": None, "error": None, **more,
    }  # fmt: skip


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_node_tells_what_runs_what_it_is_asked_for_and_what_was_short() -> None:
    assert is_wanted(session("uploading", timedelta(days=3)), [], NOW)
    assert is_wanted(session("failed", timedelta(days=3)), ["main:1"], NOW)
    assert is_wanted(session("committed", LATELY / 2), [], NOW)
    assert not is_wanted(session("committed", LATELY * 2), ["main:2"], NOW)
    assert is_wanted(session("uploading", timedelta(0), created=""), [], NOW)
    assert not is_wanted(session("failed", timedelta(0), created=""), [], NOW)


def test_a_restore_says_how_far_it_is_before_and_after_it_has_begun() -> None:
    volume = {"name": "pvc-uid-1", "size_bytes": 2 * GIB}
    begun = restore(volume, "node-a:8", {"bytes_done": GIB // 4, "bytes_total": GIB})
    assert begun == Work(Kind.RESTORE, "pvc-uid-1", "node-a:8", Stage.RUNNING, GIB // 4, GIB)
    assert text(restore(volume, "node-a:8", {})) == "restoring: 0 %, 2.0 GiB left"
    told = events(begun, About(None, CLAIM.subject))
    assert [(event.about.kind, event.reason, event.message) for event in told] == [
        ("PersistentVolumeClaim", "VolumeRestoring", "restoring: 25 %, 768.0 MiB left")
    ]  # fmt: skip
    told = events(restored(volume, "node-a:8"), About(None, CLAIM.subject))
    assert [(event.reason, event.message) for event in told] == [("VolumeRestored", "restored: 2.0 GiB")]


def test_a_restore_of_which_its_node_says_nothing_has_failed() -> None:
    lost = Work(Kind.RESTORE, "pvc-1", f"node-a:{new_id()}", Stage.RUNNING)
    kept, silent = replace(lost, id="pvc-2"), replace(lost, id="pvc-3", volume=f"node-b:{new_id()}")
    assert given_up([lost, kept, silent, UPLOAD], [replace(kept, stage=Stage.DONE)], ["node-a"]) == ["pvc-1"]


def test_work_goes_over_the_wire_as_it_is() -> None:
    failed = session("failed", LATELY, error={"kind": "X", "message": "m", "hint": "h"}, progress={"bytes_done": 7})
    ended = [upload(session(state, LATELY), "node-a:7") for state in ("committed", "aborted")]
    found = [UPLOAD, upload(failed, "node-a:7"), *ended]
    assert [(item.stage, item.done) for item in found[1:]] == [(Stage.FAILED, 7), (Stage.DONE, GIB), (Stage.FAILED, 0)]
    assert unpack(pack(found)) == found
    answer = pack([UPLOAD, UPLOAD])
    newer = answer["work"][1]  # type: ignore[index]
    newer.update({"kind": "scrub", "speed": 1})  # type: ignore[union-attr]
    assert unpack(answer) == [UPLOAD], "another version's kinds are left out"
    assert list(asked_for(["a", "b"])["ids"]) == ["a", "b"]  # type: ignore[arg-type]
