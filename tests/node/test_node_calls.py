"""CSI's Node on real kernels: staging, publishing, growing, measuring; in any order, after any death."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from csi import csi_pb2
from driver.core.sizes import MIB
from driver.host import mountinfo
from driver.node.here import Here, NodeEngine
from driver.node.metrics import Engine as Figures
from tests.engines import Engine, engine, run
from tests.oracle import fill
from tests.plugins import MODE, Plugin, block_capability, mount_capability, plugin
from tests.waiting import wait_until

SIZE = 64 * MIB


@pytest.fixture(scope="module")
def made() -> Iterator[Engine]:
    with engine() as running:
        yield running


@pytest.fixture
def one(made: Engine) -> Iterator[Plugin]:
    with plugin(made) as running:
        yield running


def fails(code: str, call: Callable[[], Any]) -> str:
    """The message of a call that must fail with that code."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    assert raised.value.code().name == code, raised.value
    return str(raised.value.details())


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", ""])
def test_a_file_system_from_class_to_pod_and_back(one: Plugin, fs_type: str) -> None:
    capability = mount_capability(fs_type, flags=["noatime"])
    volume = one.create(f"files-{fs_type}", SIZE, capability)
    size = 300 * MIB if fs_type == "xfs" else SIZE
    assert one.engine.call("volume.show", name=volume.rpartition(":")[2])["size_bytes"] == size
    for _ in range(2):
        staged = one.stage(volume, capability)
    assert mountinfo.mounts_at(str(staged))[-1].fstype == (fs_type or "ext4")
    for _ in range(2):
        target = one.publish(volume, "pod-1", capability)
    (target / "file").write_bytes(b"x" * MIB)
    assert "noatime" in mountinfo.mounts_at(str(target))[-1].options
    read_only = one.publish(volume, "pod-2", capability, readonly=True)
    assert (read_only / "file").read_bytes() == b"x" * MIB
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "other").touch()
    fails("ALREADY_EXISTS", lambda: one.publish(volume, "pod-2", capability))
    fails("FAILED_PRECONDITION", lambda: one.unstage(volume))
    for path in (target, read_only):
        for _ in range(2):
            one.unpublish(volume, path)
        assert not path.exists()
    for _ in range(2):
        one.unstage(volume)
    assert not one.engine.call("volume.show", name=volume.rpartition(":")[2])["attached"]
    staged = one.stage(volume, capability)
    assert (staged / "file").read_bytes() == b"x" * MIB
    one.unstage(volume)


def test_a_raw_block_volume(one: Plugin) -> None:
    volume = one.create("raw", SIZE, block_capability())
    one.stage(volume, block_capability())
    for _ in range(2):
        target = one.publish(volume, "pod-raw", block_capability())
    fill(target, 8 * MIB)
    assert run("blockdev", "--getsize64", str(target)).strip() == str(SIZE)
    stats = one.node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target)))
    assert [(usage.total, usage.unit) for usage in stats.usage] == [(SIZE, csi_pb2.VolumeUsage.BYTES)]
    one.unpublish(volume, target)
    assert not target.exists()
    one.unstage(volume)


def test_one_pod_only_means_one_pod(one: Plugin) -> None:
    for capability in (
        mount_capability(mode=MODE.SINGLE_NODE_SINGLE_WRITER), block_capability(MODE.SINGLE_NODE_SINGLE_WRITER)
    ):  # fmt: skip
        kind = capability.WhichOneof("access_type")
        volume = one.create(f"alone-{kind}", SIZE, capability)
        one.stage(volume, capability)
        target = one.publish(volume, f"{kind}-1", capability)
        one.publish(volume, f"{kind}-1", capability)
        fails("FAILED_PRECONDITION", lambda: one.publish(volume, f"{kind}-2", capability))  # noqa: B023
        one.unpublish(volume, target)
        other = one.publish(volume, f"{kind}-2", capability)
        one.unpublish(volume, other)
        one.unstage(volume)


def test_what_is_on_a_disk_is_never_formatted_over(one: Plugin) -> None:
    volume = one.create("data", 5 * SIZE)
    number = volume.rpartition(":")[2]
    device = one.engine.call("volume.attach", name=number)["device"]
    fill(device, SIZE)
    content = Path(device).read_bytes()
    assert "not formatted over" in fails("FAILED_PRECONDITION", lambda: one.stage(volume))
    assert Path(device).read_bytes() == content
    run("wipefs", "-aq", device)
    run("blkdiscard", "-z", device)
    run("mkfs.ext4", "-q", device)
    xfs = mount_capability("xfs")
    assert "ext4" in fails("FAILED_PRECONDITION", lambda: one.stage(volume, xfs))
    one.stage(volume)
    one.unstage(volume)


def test_nothing_is_mounted_over_what_is_there_and_nothing_foreign_is_unmounted(one: Plugin, tmp_path: Path) -> None:
    volume = one.create("polite", SIZE)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()

    def stage(path: str) -> Any:
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume, staging_target_path=path, volume_capability=mount_capability()
        )
        return one.node.NodeStageVolume(request)

    assert "not empty" in fails("FAILED_PRECONDITION", lambda: stage(str(full)))
    fails("INVALID_ARGUMENT", lambda: stage("/"))
    one.stage(volume)
    target = csi_pb2.NodePublishVolumeRequest(
        volume_id=volume, staging_target_path=str(one.folder / "staging" / volume.rpartition(":")[2]),
        target_path=str(full), volume_capability=mount_capability(),
    )  # fmt: skip
    assert "not empty" in fails("FAILED_PRECONDITION", lambda: one.node.NodePublishVolume(target))
    run("mount", "-t", "tmpfs", "foreign", str(full))
    try:
        gone = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(full))
        assert "foreign" in fails("FAILED_PRECONDITION", lambda: one.node.NodeUnpublishVolume(gone))
        unstage = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=str(full))
        assert "foreign" in fails("FAILED_PRECONDITION", lambda: one.node.NodeUnstageVolume(unstage))
    finally:
        run("umount", str(full))
    (full / "file").write_text("somebody's")
    assert "by hand" in fails("FAILED_PRECONDITION", lambda: one.unpublish(volume, full / "file"))
    one.unstage(volume)


def test_mkfs_options_come_from_the_class(one: Plugin) -> None:
    request = csi_pb2.CreateVolumeRequest(
        name="inodes", volume_capabilities=[mount_capability()], parameters={"mkfsOptions": "-N 4096"},
        capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE),
    )  # fmt: skip
    volume = one.controller.CreateVolume(request).volume
    staged = one.stage(volume.volume_id, **volume.volume_context)
    assert os.statvfs(staged).f_files == 4096
    one.unstage(volume.volume_id)


def test_a_restore_into_a_larger_volume_is_grown_when_it_is_staged(one: Plugin) -> None:
    for fs_type, size in (("ext4", SIZE), ("xfs", 300 * MIB)):
        capability = mount_capability(fs_type)
        volume = one.create(f"small-{fs_type}", size, capability)
        staged = one.stage(volume, capability)
        (staged / "file").write_text("kept")
        os.sync()
        snapshot = one.snapshot(volume, f"small-{fs_type}-1")
        source = csi_pb2.VolumeContentSource(
            snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)
        )
        larger = one.create(f"large-{fs_type}", 2 * size, capability, volume_content_source=source)
        path = one.stage(larger, capability)  # beside its origin: xfs with the same uuid
        assert (path / "file").read_text() == "kept"
        status = os.statvfs(path)
        assert status.f_blocks * status.f_frsize > 1.6 * size
        one.unstage(larger)
        one.unstage(volume)


def test_a_file_system_grows_while_it_is_used(one: Plugin) -> None:
    capability = mount_capability("xfs")
    volume = one.create("growing", 300 * MIB, capability)
    staged = one.stage(volume, capability)
    target = one.publish(volume, "pod-growing", capability)
    expand = csi_pb2.ControllerExpandVolumeRequest(
        volume_id=volume, capacity_range=csi_pb2.CapacityRange(required_bytes=400 * MIB), volume_capability=capability
    )
    too_early = csi_pb2.NodeExpandVolumeRequest(
        volume_id=volume, volume_path=str(target), capacity_range=csi_pb2.CapacityRange(required_bytes=400 * MIB)
    )
    fails("OUT_OF_RANGE", lambda: one.node.NodeExpandVolume(too_early))
    for _ in range(2):
        answer = one.controller.ControllerExpandVolume(expand)
        assert (answer.capacity_bytes, answer.node_expansion_required) == (400 * MIB, True)
        assert one.node.NodeExpandVolume(too_early).capacity_bytes == 400 * MIB
    status = os.statvfs(staged)
    assert status.f_blocks * status.f_frsize > 330 * MIB
    stats = one.node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target)))
    by_unit = {usage.unit: usage for usage in stats.usage}
    assert by_unit[csi_pb2.VolumeUsage.BYTES].total > 330 * MIB
    assert by_unit[csi_pb2.VolumeUsage.INODES].total > 1000
    one.unpublish(volume, target)
    one.unstage(volume)


def test_a_frozen_snapshot_needs_no_journal(one: Plugin) -> None:
    """With freeze, the file system's own view was complete at the cut: the restored copy's journal is clean."""
    volume = one.create("frozen", SIZE)
    staged = one.stage(volume)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            (staged / f"file-{number % 50}").write_bytes(os.urandom(4096))
            number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        time.sleep(0.3)
        needs = {}
        for freeze in ("false", "true"):
            snapshot = one.snapshot(volume, f"frozen-{freeze}", freeze=freeze)
            source = csi_pb2.VolumeContentSource(
                snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)
            )
            copy = one.create(f"copy-{freeze}", SIZE, volume_content_source=source).rpartition(":")[2]
            device = one.engine.call("volume.attach", name=copy)["device"]
            needs[freeze] = "needs_recovery" in run("dumpe2fs", "-h", device)
            one.engine.call("volume.detach", name=copy)
        before = len(list(staged.iterdir()))
    finally:
        stop.set()
        writing.join(150)
    assert not writing.is_alive(), "the file system stayed frozen"
    assert before > 0
    assert needs == {"false": True, "true": False}
    one.unstage(volume)


def metrics(of: Engine) -> str:
    """What a node plugin on that engine serves."""
    registry = CollectorRegistry()
    registry.register(Figures(Here("node", NodeEngine(of.state, "node"))))
    return generate_latest(registry).decode()


def test_a_dead_device_is_reported_and_staged_again(made: Engine) -> None:
    """The engine died with mounts on its devices: unpublish and unstage succeed, publish stages anew."""
    with engine() as own, plugin(own) as one:
        volume = one.create("dead", SIZE)
        staged = one.stage(volume)
        target = one.publish(volume, "pod-dead")
        (target / "file").write_text("flushed")
        os.sync()
        health = csi_pb2.NodeGetVolumeHealthRequest(volume_id=volume, staging_target_path=str(staged))
        assert not one.node.NodeGetVolumeHealth(health).volume_health.health_statuses
        own.kill()
        fails("UNAVAILABLE", lambda: one.node.NodeGetVolumeHealth(health))
        assert not one.identity.Probe(csi_pb2.ProbeRequest()).ready.value
        assert one.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest()).node_id
        own.start()
        assert one.identity.Probe(csi_pb2.ProbeRequest()).ready.value
        with contextlib.suppress(OSError):
            (target / "noise").write_text("x")
        statuses = one.node.NodeGetVolumeHealth(health).volume_health.health_statuses
        assert [(status.status, status.reason) for status in statuses] == [(csi_pb2.INACCESSIBLE, "DeviceDead")]
        assert str(staged) in statuses[0].message and str(target) in statuses[0].message
        assert 'stillframe_volume_condition{reason="DeviceDead",volume="dead"} 1.0' in metrics(own)
        one.unpublish(volume, target)
        target = one.publish(volume, "pod-dead")
        assert (target / "file").read_text() == "flushed"
        assert not one.node.NodeGetVolumeHealth(health).volume_health.health_statuses
        one.unpublish(volume, target)
        one.unstage(volume)


def test_a_damaged_file_system_is_checked_before_it_is_mounted(one: Plugin) -> None:
    """What e2fsck mends without a decision is mended; what needs one is not mounted, and the error says what to do."""
    volume = one.create("damaged", SIZE)
    number = volume.rpartition(":")[2]
    (one.stage(volume) / "file").write_text("kept")
    one.unstage(volume)
    device = str(one.engine.call("volume.attach", name=number)["device"])
    run("debugfs", "-w", "-R", "set_super_value state 2", device)  # EXT4_ERROR_FS
    assert "clean with errors" in run("dumpe2fs", "-h", device)
    staged = one.stage(volume)
    assert (staged / "file").read_text() == "kept"
    one.unstage(volume)
    device = str(one.engine.call("volume.attach", name=number)["device"])
    assert "clean with errors" not in run("dumpe2fs", "-h", device)
    run("debugfs", "-w", "-R", "clri <2>", device)  # the root folder
    run("debugfs", "-w", "-R", "set_super_value state 2", device)
    for _ in range(2):
        assert "e2fsck -f" in fails("INTERNAL", lambda: one.stage(volume))
    assert not mountinfo.mounts_of(device)
    one.unstage(volume)


def test_mkfs_options_that_are_none_are_refused(one: Plugin) -> None:
    volume = one.create("quoted", SIZE)
    assert "mkfsOptions" in fails("INVALID_ARGUMENT", lambda: one.stage(volume, mkfsOptions="-L 'open"))
    one.stage(volume)
    one.unstage(volume)


def test_an_ext4_whose_growth_was_cut_is_mended_and_grown(made: Engine, tmp_path: Path) -> None:
    """resize2fs dies by itself here, at several of its writes, as it does when the plugin's container ends."""
    wrapper = tmp_path / "resize2fs"
    real = shutil.which("resize2fs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with plugin(made) as one:
            volume = one.create("cut-growth", SIZE)
            (one.stage(volume) / "file").write_text("kept")
            one.unstage(volume)
            size, cuts = SIZE, 0
            for number in (1, 2, 3, 5, 8, 13, 21, 34):
                size += SIZE
                grown = csi_pb2.ControllerExpandVolumeRequest(
                    volume_id=volume, capacity_range=csi_pb2.CapacityRange(required_bytes=size)
                )
                one.controller.ControllerExpandVolume(grown)
                calls = "pwrite64,fallocate,fsync"
                inject = f"-e trace={calls} -e inject={calls}:signal=KILL:when={number}"
                wrapper.write_text(f'#!/bin/sh\nexec strace -f -o /dev/null {inject} {real} "$@"\n')
                wrapper.chmod(0o700)
                with contextlib.suppress(grpc.RpcError):
                    one.stage(volume)
                    one.unstage(volume)
                cuts += one.engine.call("volume.show", name=volume.rpartition(":")[2])["growing"]
                wrapper.unlink()
                staged = one.stage(volume)
                assert (staged / "file").read_text() == "kept"
                status = os.statvfs(staged)
                assert status.f_blocks * status.f_frsize > 0.8 * size
                assert not one.engine.call("volume.show", name=volume.rpartition(":")[2])["growing"]
                one.unstage(volume)
            assert cuts >= 4, "resize2fs was let go on too often"


def test_a_nodes_storage_is_unwell_without_its_engine() -> None:
    with engine() as own, plugin(own) as one:
        own.kill()
        (found,) = one.node.NodeGetStorageHealth(csi_pb2.NodeGetStorageHealthRequest()).backend_health
        assert (found.status, found.reason) == (csi_pb2.STORAGE_UNREACHABLE, "EngineDown")
        own.start()
        assert not one.node.NodeGetStorageHealth(csi_pb2.NodeGetStorageHealthRequest()).backend_health


def is_aborted(call: Callable[[], Any]) -> bool:
    try:
        call()
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.ABORTED)
    return False


def test_calls_for_one_volume_come_one_after_another(one: Plugin) -> None:
    """Who comes second is told ABORTED; calls for other volumes, and those that only look, go on."""
    slow, other = one.create("slow", SIZE), one.create("other", SIZE)
    device = str(one.engine.call("volume.attach", name=slow.rpartition(":")[2])["device"])
    run("mkfs.ext4", "-q", device)
    processes = [pid for key, pid in one.engine.processes("slow").items() if key.startswith("serve")]
    path = one.folder / "pods" / "slow" / "volume"

    def stage() -> None:
        while is_aborted(lambda: one.stage(slow)):
            pass

    staging = threading.Thread(target=stage, daemon=True)
    try:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        staging.start()
        wait_until(lambda: is_aborted(lambda: one.unpublish(slow, path)))
        for call in (
            lambda: one.stage(slow), lambda: one.unstage(slow), lambda: one.publish(slow, "slow"),
            lambda: one.unpublish(slow, path),
            lambda: one.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=slow), timeout=150),
        ):  # fmt: skip
            fails("ABORTED", call)
        one.stage(other)
        one.unstage(other)
        look = csi_pb2.ControllerGetVolumeRequest(volume_id=slow)
        assert one.controller.ControllerGetVolume(look).volume.volume_id == slow
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
    staging.join(150)
    assert not staging.is_alive()
    one.stage(slow)
    one.unstage(slow)
