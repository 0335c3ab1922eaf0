"""The node plugin's decisions: names, capabilities, sizes, parameters, pages. No engine, no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi import csi_pb2
from driver.core.errors import (
    Busy,
    EngineUnavailable,
    InvalidArgument,
    NotFound,
    OutOfRange,
    OutOfSpace,
    StillframeError,
)
from driver.core.ids import check_name, new_id
from driver.core.sizes import CHUNK_BYTES, GIB, MIB, VOLUME_BYTES_MAX
from driver.node.here import LOST_SECONDS, Here, NodeEngine
from driver.node.volumes import VolumeCalls
from driver.rpc import capabilities, parameters
from driver.rpc.errors import CODES, bounded
from driver.rpc.names import Handle, engine_name, node_id, parse_handle
from driver.rpc.operations import Operations
from driver.rpc.paging import page
from tests.plugins import MODE, block_capability, mount_capability


def bounds(required: int = 0, limit: int = 0) -> csi_pb2.CapacityRange:
    return csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)


@given(st.text(min_size=1, max_size=128))
def test_every_name_of_an_orchestrator_becomes_a_name_of_the_engine(name: str) -> None:
    try:
        made = engine_name(name)
    except InvalidArgument as error:
        assert "control characters" in error.message or "bytes" in error.message
        return
    assert check_name("volume", made) == made
    assert engine_name(name) == made


def test_names_that_differ_stay_different() -> None:
    assert len({engine_name(name) for name in ("pvc-1", "pvc/1", "pvc:1", "pvc 1", "PVC-1", "pvç-1")}) == 6
    for name in ("", "x" * 129, "ü" * 65, "a\nb"):
        with pytest.raises(InvalidArgument):
            engine_name(name)


def test_a_handle_is_node_and_uuid() -> None:
    handle = Handle("node-1", new_id())
    assert parse_handle("volume", str(handle)) == handle
    for text in ("x", "node-1:", ":" + new_id(), "node-1:not-a-uuid", "n" * 200 + ":" + new_id()):
        for what in ("volume", "snapshot", "group snapshot"):
            with pytest.raises(NotFound) as raised:
                parse_handle(what, text)
            assert "<uuid>" in raised.value.hint
    with pytest.raises(InvalidArgument):
        parse_handle("volume", "")


def test_the_handle_of_a_long_node_name_has_at_most_128_bytes() -> None:
    long = "very-long-name." * 16
    assert len(str(Handle(node_id(long), new_id()))) <= 128
    assert node_id("short") == "short"
    assert node_id(long) != node_id(long + "x")


@pytest.mark.parametrize("mode", MODE.Mode.values())
def test_only_modes_of_one_node_are_possible(mode: MODE.Mode.ValueType) -> None:
    possible = MODE.Mode.Name(mode).startswith("SINGLE_NODE")
    assert (capabilities.is_possible([mount_capability(mode=mode)]) is None) == possible
    assert (capabilities.is_possible([block_capability(mode=mode)]) is None) == possible


def test_other_capabilities_are_refused() -> None:
    nothing = csi_pb2.VolumeCapability()
    no_mode = csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume())
    group = mount_capability()
    group.mount.volume_mount_group = "1000"
    for wrong in (nothing, no_mode, mount_capability("btrfs"), group, mount_capability(flags=["x" * 4097])):
        with pytest.raises(InvalidArgument):
            capabilities.check(wrong)
    with pytest.raises(InvalidArgument):
        capabilities.check_all([])


@given(st.integers(0, 2 * VOLUME_BYTES_MAX), st.integers(0, 2 * VOLUME_BYTES_MAX), st.integers(0, 4 * GIB))
def test_a_size_is_within_its_bounds_or_refused(required: int, limit: int, least: int) -> None:
    try:
        size = capabilities.size_for(bounds(required, limit), [mount_capability("xfs")], least)
    except (OutOfRange, InvalidArgument):
        upper = min(limit or VOLUME_BYTES_MAX, VOLUME_BYTES_MAX)
        lower = max(required, least, 300 * MIB)
        assert lower > upper // CHUNK_BYTES * CHUNK_BYTES
        return
    assert size % CHUNK_BYTES == 0
    assert size >= max(required, least, 300 * MIB)
    assert not limit or size <= limit


def test_sizes_without_a_wish_are_a_gibibyte_or_the_limit() -> None:
    assert capabilities.size_for(bounds(), [mount_capability()]) == GIB
    assert capabilities.size_for(bounds(limit=64 * MIB), [mount_capability()]) == 64 * MIB
    assert capabilities.size_for(bounds(), [mount_capability()], least_bytes=3 * GIB) == 3 * GIB
    assert capabilities.size_for(bounds(1), [block_capability()]) == MIB
    with pytest.raises(InvalidArgument):
        capabilities.size_for(bounds(-1), [])
    with pytest.raises(InvalidArgument):
        capabilities.size_for(bounds(2, 1), [])


def test_parameters_are_ours_or_kubernetes_own() -> None:
    given_ = {"provisioning": "thin", "processes": "2", "mkfsOptions": "-E 'lazy_itable_init=0'", "logicalBlockSize": "512"}
    parsed = parameters.of_volume({**given_, "csi.storage.k8s.io/pvc/name": "x"})
    assert parsed == parameters.VolumeParameters("thin", 512, 2, ("-E", "lazy_itable_init=0"))
    assert parameters.of_snapshot({}) == parameters.SnapshotParameters(None, False, "throttle")
    assert parameters.of_snapshot({"freeze": "true", "repository": "main"}).freeze
    wrongs = ("provisioning", "fat"), ("processes", "9"), ("processes", "²"), ("mkfsOptions", "'"), ("Provisioning", "thin")
    for wrong in ({key: value} for key, value in wrongs):
        with pytest.raises(InvalidArgument) as raised:
            parameters.of_volume(wrong)
        assert next(iter(wrong)) in raised.value.message
    with pytest.raises(InvalidArgument) as raised:
        parameters.of_snapshot({"repositroy": "main"})
    assert "freeze, onBufferFull, repository" in raised.value.hint
    for key in ("keepDaily", "keep-hourly", "retentionDays", "Prune"):
        with pytest.raises(InvalidArgument, match=key) as raised:
            parameters.of_snapshot({key: "7"})
        assert 'docs/csi.md, "Old snapshots"' in raised.value.hint


@given(st.sets(st.text("abcdef", min_size=1), max_size=30), st.integers(0, 7))
def test_pages_show_everything_once(names: set[str], size: int) -> None:
    items, token, seen = sorted(names), "", list[str]()
    for _ in range(40):
        shown, token = page(items, str, size, token)
        assert not size or len(shown) <= size
        seen += shown
        if not token:
            break
    assert seen == items


def test_a_page_outlives_what_it_ended_with() -> None:
    shown, token = page(["a", "b", "c", "d"], str, 2, "")
    assert shown == ["a", "b"]
    assert page(["a", "bb", "c", "d"], str, 2, token) == (["bb", "c"], "after:c")
    with pytest.raises(Busy):
        page(["a"], str, 1, "nonsense")
    with pytest.raises(InvalidArgument):
        page(["a"], str, -1, "")


def test_the_second_call_for_a_thing_is_told_to_come_again() -> None:
    operations = Operations()
    with operations.on("volume a", "volume b"):
        with pytest.raises(Busy, match="volume b"), operations.on("volume b"):
            pass
        with operations.on("volume c"):
            pass
    with operations.on("volume b"):
        pass


def test_every_domain_error_has_a_code() -> None:
    assert {kind for kind in StillframeError.kinds.values() if StillframeError in kind.__bases__} == set(CODES)


@given(st.text(max_size=9000))
def test_an_errors_text_fits_grpcs_trailers(text: str) -> None:
    assert len(quote(bounded(text))) <= 4096 + 9
    assert bounded(text).rstrip("…") in text or text == ""
    assert bounded("short") == "short"


def test_a_claim_is_scheduled_again_once_the_engine_has_been_away_for_a_minute(tmp_path: Path) -> None:
    now = [0.0]
    calls = VolumeCalls(Here("node-1", NodeEngine(tmp_path, "node-1", lambda: now[0])))
    context: Any = None
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[mount_capability()])
    for wait in (0.0, LOST_SECONDS / 2):
        now[0] += wait
        with pytest.raises(EngineUnavailable, match="node 'node-1': no engine runs on") as raised:
            calls.CreateVolume(create, context)
        assert "kubectl get pods" in raised.value.hint
        with pytest.raises(EngineUnavailable):
            calls.GetCapacity(csi_pb2.GetCapacityRequest(), context)
    now[0] += LOST_SECONDS
    with pytest.raises(OutOfSpace):
        calls.CreateVolume(create, context)
    assert calls.GetCapacity(csi_pb2.GetCapacityRequest(), context).available_capacity == 0
