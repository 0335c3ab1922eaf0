"""How much, how many, how large, and for whom: what CSI's answers promise is what one gets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.sizes import GIB, MIB, TIB
from driver.host import mountinfo
from tests.engines import engine
from tests.faults.test_disk import engine_on, small
from tests.plugins import MODE, Plugin, mount_capability, plugin

SIZE = 64 * MIB


@pytest.fixture(scope="module")
def one() -> Iterator[Plugin]:
    with engine() as made, plugin(made, "--max-volumes", "7") as running:
        yield running


def code_of(call: Any, request: Any) -> str:
    """What a call that must fail fails with."""
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=150)
    return str(raised.value.code().name)


def test_the_capacity_is_what_a_thick_volume_gets(tmp_path: Path) -> None:
    """To the last 64 KiB: the file system's own needs for such a file are taken into account."""
    for size in (160 * MIB, 700 * MIB):
        folder = tmp_path / str(size)
        folder.mkdir()
        with small(folder, size) as host, engine_on(host, folder) as made, plugin(made) as running:
            available = running.controller.GetCapacity(csi_pb2.GetCapacityRequest())
            assert available.maximum_volume_size.value == available.available_capacity > size // 2
            running.create("all-of-it", available.available_capacity)
            assert running.controller.GetCapacity(csi_pb2.GetCapacityRequest()).available_capacity < 4 * MIB


def test_growth_that_cannot_be_is_out_of_range(one: Plugin) -> None:
    volume = one.create("growing", SIZE)

    def expand(**bounds: int) -> csi_pb2.ControllerExpandVolumeRequest:
        return csi_pb2.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=csi_pb2.CapacityRange(**bounds))

    no_multiple = {"required_bytes": SIZE + 1, "limit_bytes": SIZE + 2}
    impossible = ({"required_bytes": 17 * TIB}, {"limit_bytes": SIZE // 2}, no_multiple)
    for bounds in impossible:
        assert code_of(one.controller.ControllerExpandVolume, expand(**bounds)) == "OUT_OF_RANGE", bounds
    assert code_of(one.controller.ControllerExpandVolume, expand(required_bytes=15 * TIB)) == "RESOURCE_EXHAUSTED"
    assert one.controller.ControllerExpandVolume(expand(required_bytes=SIZE // 2)).capacity_bytes == SIZE
    assert one.engine.call("volume.show", name=volume.rpartition(":")[2])["size_bytes"] == SIZE


def test_the_node_says_how_many_volumes_it_takes_and_where_it_is(one: Plugin) -> None:
    info = one.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert info.max_volumes_per_node == 7
    assert dict(info.accessible_topology.segments) == {"topology.stillframe.io/node": info.node_id}


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_volume_for_reading_only_is_never_written(one: Plugin, fs_type: str) -> None:
    """Staged read-only, whatever the pod asks; larger than its file system, it stays as it is."""
    writing, reading = mount_capability(fs_type), mount_capability(fs_type, MODE.SINGLE_NODE_READER_ONLY)
    size = 300 * MIB if fs_type == "xfs" else SIZE
    volume = one.create(f"read-{fs_type}", size, writing)
    assert code_of_stage(one, one.create(f"empty-{fs_type}", size, writing), reading) == "FAILED_PRECONDITION"
    (one.stage(volume, writing) / "file").write_text("kept")
    one.unstage(volume)
    one.controller.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume, capacity_range=csi_pb2.CapacityRange(required_bytes=2 * size), volume_capability=writing
        )
    )
    for _ in range(2):
        staged = one.stage(volume, reading)
        target = one.publish(volume, f"reader-{fs_type}", reading)
    assert all(mountinfo.mounts_at(str(path))[-1].read_only for path in (staged, target))
    assert (target / "file").read_text() == "kept"
    for path in (staged, target):
        with pytest.raises(OSError, match="Read-only"):
            (path / "other").touch()
    status = os.statvfs(target)
    assert status.f_blocks * status.f_frsize < size
    one.unpublish(volume, target)
    one.unstage(volume)


def code_of_stage(one: Plugin, volume: str, capability: csi_pb2.VolumeCapability) -> str:
    with contextlib.suppress(grpc.RpcError):
        one.stage(volume, capability)
        return "OK"
    path = one.folder / "staging" / volume.rpartition(":")[2]
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id=volume, staging_target_path=str(path), volume_capability=capability
    )
    return code_of(one.node.NodeStageVolume, request)


def test_an_unknown_parameter_is_told_with_those_that_there_are(one: Plugin) -> None:
    request = csi_pb2.CreateVolumeRequest(
        name="unknown", volume_capabilities=[mount_capability()], parameters={"provisionning": "thin"},
        capacity_range=csi_pb2.CapacityRange(required_bytes=GIB),
    )  # fmt: skip
    with pytest.raises(grpc.RpcError) as raised:
        one.controller.CreateVolume(request)
    assert "known ones: logicalBlockSize, mkfsOptions, processes, provisioning" in str(raised.value.details())
    snapshot = csi_pb2.CreateSnapshotRequest(
        source_volume_id=one.create("of", MIB), name="unknown", parameters={"csi.storage.k8s.io/x": "y", "freezing": "true"}
    )
    with pytest.raises(grpc.RpcError) as raised:
        one.controller.CreateSnapshot(snapshot)
    assert "known ones: freeze, onBufferFull, repository" in str(raised.value.details())
    del snapshot.parameters["freezing"]
    one.controller.CreateSnapshot(snapshot)
