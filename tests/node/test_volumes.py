"""CSI's Controller on a real engine: volumes, from nothing, from snapshots, from each other."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.sizes import GIB, MIB
from driver.node.here import Here, NodeEngine
from driver.node.work import work
from driver.rpc.names import TOPOLOGY_KEY
from driver.rpc.progress import Kind, Stage
from tests.engines import engine, run
from tests.oracle import fill, read_device
from tests.plugins import Plugin, block_capability, mount_capability, plugin
from tests.servers import credentials_file
from tests.waiting import wait_until

SIZE = 32 * MIB


@pytest.fixture(scope="module")
def one() -> Iterator[Plugin]:
    with engine() as made, plugin(made) as running:
        yield running


@pytest.fixture(scope="module")
def slow() -> Iterator[Plugin]:
    """One whose uploads take a while."""
    with engine("--upload-rate", "2Mi") as made, plugin(made) as running:
        yield running


def code(call: Any, request: Any) -> grpc.StatusCode:
    """What a call that must fail fails with."""
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=150)
    return raised.value.code()


def attached(one: Plugin, volume: str) -> str:
    return str(one.engine.call("volume.attach", name=volume.rpartition(":")[2])["device"])


def test_the_same_name_is_the_same_volume(one: Plugin) -> None:
    volume = one.create("same", SIZE)
    assert one.create("same", SIZE) == volume
    wider = csi_pb2.CreateVolumeRequest(
        name="same", volume_capabilities=[mount_capability()],
        capacity_range=csi_pb2.CapacityRange(required_bytes=MIB, limit_bytes=GIB),
    )  # fmt: skip
    assert one.controller.CreateVolume(wider).volume.volume_id == volume
    other = csi_pb2.CreateVolumeRequest(
        name="same", volume_capabilities=[mount_capability()], capacity_range=csi_pb2.CapacityRange(required_bytes=2 * SIZE)
    )
    assert code(one.controller.CreateVolume, other) is grpc.StatusCode.ALREADY_EXISTS
    thin = csi_pb2.CreateVolumeRequest(
        name="same", volume_capabilities=[mount_capability()], parameters={"provisioning": "thin"}
    )
    assert code(one.controller.CreateVolume, thin) is grpc.StatusCode.ALREADY_EXISTS


def test_a_volume_lies_on_its_node_and_nowhere_else(one: Plugin) -> None:
    node = one.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    here, there = node.accessible_topology, csi_pb2.Topology(segments={TOPOLOGY_KEY: "elsewhere"})
    request = csi_pb2.CreateVolumeRequest(
        name="placed", volume_capabilities=[mount_capability()], capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE),
        accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[there]),
    )  # fmt: skip
    assert code(one.controller.CreateVolume, request) is grpc.StatusCode.RESOURCE_EXHAUSTED
    request.accessibility_requirements.requisite.append(here)
    assert list(one.controller.CreateVolume(request).volume.accessible_topology) == [here]
    assert one.controller.GetCapacity(csi_pb2.GetCapacityRequest(accessible_topology=there)).available_capacity == 0
    free = os.statvfs(one.engine.state)
    given = {"csi.storage.k8s.io/fstype": "ext4", "anything": "else"}
    found = one.controller.GetCapacity(csi_pb2.GetCapacityRequest(accessible_topology=here, parameters=given))
    assert 0.8 < found.available_capacity / (free.f_bavail * free.f_frsize) < 1.2


def test_what_cannot_be_is_refused_with_the_right_code(one: Plugin) -> None:
    def wrong(**fields: Any) -> grpc.StatusCode:
        request = csi_pb2.CreateVolumeRequest(name="wrong", volume_capabilities=[mount_capability()])
        request.MergeFrom(csi_pb2.CreateVolumeRequest(**fields))
        return code(one.controller.CreateVolume, request)

    limits = csi_pb2.CapacityRange
    assert wrong(capacity_range=limits(required_bytes=1 << 50)) is grpc.StatusCode.OUT_OF_RANGE
    assert wrong(capacity_range=limits(limit_bytes=1000)) is grpc.StatusCode.OUT_OF_RANGE
    assert wrong(capacity_range=limits(required_bytes=15 << 40)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert wrong(parameters={"provisionning": "thin"}) is grpc.StatusCode.INVALID_ARGUMENT
    assert wrong(mutable_parameters={"iops": "1"}) is grpc.StatusCode.INVALID_ARGUMENT
    assert wrong(volume_content_source=csi_pb2.VolumeContentSource()) is grpc.StatusCode.INVALID_ARGUMENT
    listed = one.controller.ListVolumes(csi_pb2.ListVolumesRequest()).entries
    assert "wrong" not in {volume["name"] for volume in one.engine.call("volume.list")["volumes"]}
    assert len(listed) == len(one.engine.call("volume.list")["volumes"])


def test_a_snapshot_becomes_a_volume(one: Plugin) -> None:
    volume = one.create("origin", SIZE, block_capability())
    device = attached(one, volume)
    fill(device, SIZE)
    snapshot = one.snapshot(volume, "origin-1")
    assert (snapshot.source_volume_id, snapshot.size_bytes) == (volume, SIZE)
    assert abs(snapshot.creation_time.seconds - time.time()) < 600
    source = csi_pb2.VolumeContentSource(
        snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)
    )
    made = one.create("from-snapshot", 2 * SIZE, block_capability(), volume_content_source=source)
    assert one.create("from-snapshot", 2 * SIZE, block_capability(), volume_content_source=source) == made
    assert read_device(attached(one, made), SIZE) == read_device(device, SIZE)
    shown = one.controller.ControllerGetVolume(csi_pb2.ControllerGetVolumeRequest(volume_id=made)).volume
    assert shown.content_source == source
    plain = csi_pb2.CreateVolumeRequest(
        name="from-snapshot", volume_capabilities=[block_capability()],
        capacity_range=csi_pb2.CapacityRange(required_bytes=2 * SIZE),
    )  # fmt: skip
    assert code(one.controller.CreateVolume, plain) is grpc.StatusCode.ALREADY_EXISTS


def test_a_restore_outlives_the_calls_that_wait_for_it(one: Plugin) -> None:
    volume = one.create("slow", 8 * SIZE, block_capability())
    fill(attached(one, volume), 8 * SIZE)
    snapshot = one.snapshot(volume, "slow-1")
    request = csi_pb2.CreateVolumeRequest(
        name="patient", volume_capabilities=[block_capability()],
        volume_content_source=csi_pb2.VolumeContentSource(
            snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)
        ),
    )  # fmt: skip
    seen, seconds = set(), itertools.accumulate(itertools.repeat(0.2))

    def made() -> csi_pb2.Volume | None:
        try:
            return one.controller.CreateVolume(request, timeout=next(seconds)).volume  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            seen.add(error.code())
            return None

    content = read_device(attached(one, wait_until(made).volume_id), 8 * SIZE)
    code = grpc.StatusCode  # UNAVAILABLE: the repository could not be read in the call's time
    assert seen and seen <= {code.ABORTED, code.DEADLINE_EXCEEDED, code.UNAVAILABLE}
    assert content == read_device(attached(one, volume), 8 * SIZE)


def test_a_volume_becomes_another(one: Plugin) -> None:
    volume = one.create("parent", SIZE, block_capability())
    device = attached(one, volume)
    fill(device, SIZE)
    source = csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume))
    made = one.create("child", SIZE, block_capability(), volume_content_source=source)
    assert read_device(attached(one, made), SIZE) == read_device(device, SIZE)
    assert one.create("child", SIZE, block_capability(), volume_content_source=source) == made
    told = work(Here("node", NodeEngine(one.engine.state, "node")), ["child"])
    assert [(item.kind, item.stage, item.total) for item in told if item.id == "child"] == [(Kind.RESTORE, Stage.DONE, SIZE)]


def test_a_group_is_cut_and_deleted_as_one(one: Plugin) -> None:
    volumes = [one.create(f"member-{number}", SIZE) for number in range(3)]
    request = csi_pb2.CreateVolumeGroupSnapshotRequest(name="group", source_volume_ids=volumes)

    def ready() -> csi_pb2.VolumeGroupSnapshot | None:
        made: csi_pb2.VolumeGroupSnapshot = one.groups.CreateVolumeGroupSnapshot(request).group_snapshot
        return made if made.ready_to_use else None

    group = wait_until(ready)
    assert {item.source_volume_id for item in group.snapshots} == set(volumes)
    assert {item.creation_time.ToNanoseconds() for item in group.snapshots} == {group.creation_time.ToNanoseconds()}
    assert {item.group_snapshot_id for item in group.snapshots} == {group.group_snapshot_id}
    ids = [item.snapshot_id for item in group.snapshots]
    ask = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    assert len(one.groups.GetVolumeGroupSnapshot(ask).group_snapshot.snapshots) == 3
    alone = csi_pb2.DeleteSnapshotRequest(snapshot_id=ids[0])
    assert code(one.controller.DeleteSnapshot, alone) is grpc.StatusCode.INVALID_ARGUMENT
    other = one.snapshot(volumes[0], "not-of-the-group").snapshot_id
    wrong = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=[*ids, other])
    assert code(one.groups.DeleteVolumeGroupSnapshot, wrong) is grpc.StatusCode.INVALID_ARGUMENT
    gone = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    for _ in range(2):
        one.groups.DeleteVolumeGroupSnapshot(gone)
    one.controller.DeleteSnapshot(alone)
    assert code(one.groups.GetVolumeGroupSnapshot, ask) is grpc.StatusCode.NOT_FOUND
    elsewhere = csi_pb2.CreateVolumeGroupSnapshotRequest(
        name="wide", source_volume_ids=[volumes[0], "elsewhere:" + volumes[1].rpartition(":")[2]]
    )
    assert code(one.groups.CreateVolumeGroupSnapshot, elsewhere) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_second_snapshot_of_a_busy_volume_is_no_aborted_call(slow: Plugin) -> None:
    """ABORTED and its like make a VolumeSnapshot undeletable."""
    one, volume = slow, slow.create("busy", SIZE, block_capability())
    fill(attached(one, volume), SIZE)
    one.controller.CreateSnapshot(csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="busy-1"))
    second = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="busy-2")
    assert code(one.controller.CreateSnapshot, second) is grpc.StatusCode.FAILED_PRECONDITION
    one.snapshot(volume, "busy-1")
    one.snapshot(volume, "busy-2")
    other = csi_pb2.CreateSnapshotRequest(source_volume_id=one.create("idle", SIZE), name="busy-2")
    assert code(one.controller.CreateSnapshot, other) is grpc.StatusCode.ALREADY_EXISTS


def uploading(one: Plugin, name: str) -> str:
    """A volume whose snapshot `<name>-1` takes a while."""
    volume = one.create(name, SIZE, block_capability(), parameters={"provisioning": "thin"})
    fill(attached(one, volume), SIZE)
    answer = one.controller.CreateSnapshot(csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name=f"{name}-1")).snapshot
    assert not answer.ready_to_use
    return volume


def test_a_snapshot_deleted_in_the_making_never_comes_to_be(slow: Plugin) -> None:
    one, volume = slow, uploading(slow, "unwanted")
    ask = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="unwanted-1")
    running = one.controller.CreateSnapshot(ask).snapshot
    get = csi_pb2.GetSnapshotRequest(snapshot_id=running.snapshot_id)
    assert one.controller.GetSnapshot(get).snapshot == running
    for _ in range(2):
        one.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=running.snapshot_id))
    assert code(one.controller.GetSnapshot, get) is grpc.StatusCode.NOT_FOUND
    assert code(one.controller.CreateSnapshot, ask) is grpc.StatusCode.INTERNAL
    listed = one.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest(source_volume_id=volume)).entries
    assert list(listed) == []
    run("blkdiscard", "-f", attached(one, volume))
    one.snapshot(volume, "unwanted-2")


def test_a_snapshot_whose_manifest_is_damaged_can_be_deleted(one: Plugin) -> None:
    """Nothing is collected while it is there."""
    handle = one.snapshot(one.create("damaged", SIZE), "damaged-1").snapshot_id
    folder = one.engine.state.parent / "repository/snapshots" / handle.rpartition(":")[2]
    (folder / "manifest.json").write_text("{")
    assert code(one.controller.GetSnapshot, csi_pb2.GetSnapshotRequest(snapshot_id=handle)) is grpc.StatusCode.DATA_LOSS
    for _ in range(2):
        one.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=handle))
    assert (folder / "deleted.json").exists()


def test_a_snapshot_that_failed_stays_failed_and_says_why(slow: Plugin) -> None:
    one, volume = slow, uploading(slow, "failing")
    disk = one.engine.state / "volumes" / volume.rpartition(":")[2] / "disk"
    os.truncate(disk, MIB)
    ask = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="failing-1")

    def failed() -> Any:
        try:
            assert not one.controller.CreateSnapshot(ask).snapshot.ready_to_use
        except grpc.RpcError as error:
            return error
        return None

    failure = wait_until(failed)
    for _ in range(2):
        assert failure.code() is grpc.StatusCode.INTERNAL
        assert "disk" in str(failure.details())
        with pytest.raises(grpc.RpcError) as raised:
            one.controller.CreateSnapshot(ask)
        failure = raised.value
    health = csi_pb2.ControllerGetVolumeHealthRequest(volume_id=volume)
    found = one.controller.ControllerGetVolumeHealth(health).volume_health.health_statuses
    assert [(item.status, item.reason) for item in found] == [(csi_pb2.DATA_LOSS, "BackingFileTruncated")]
    unwell = one.controller.ControllerListVolumeHealth(csi_pb2.ControllerListVolumeHealthRequest()).entries
    assert [entry.volume_id for entry in unwell] == [volume]


def test_a_snapshot_is_refused_before_its_cut_without_a_trace(one: Plugin) -> None:
    """What may pass is FAILED_PRECONDITION: anything else would make the VolumeSnapshot undeletable."""
    volume = one.create("early", SIZE)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        one.engine.repository("away", "s3://bucket/prefix", endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}",
                              region="us-east-1", credentials=str(credentials_file(one.folder)))  # fmt: skip
        ask = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="early-1", parameters={"repository": "away"})
        assert code(one.controller.CreateSnapshot, ask) is grpc.StatusCode.FAILED_PRECONDITION
    unknown = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name="early-1", parameters={"repository": "none"})
    assert code(one.controller.CreateSnapshot, unknown) is grpc.StatusCode.NOT_FOUND
    text = (one.engine.state / "repositories.toml").read_text()
    (one.engine.state / "repositories.toml").write_text(text[: text.index("[repositories.away]")])
    one.snapshot(volume, "early-1")


def test_pages_are_stable_while_volumes_come_and_go() -> None:
    """What csi-sanity has switched off: the last volume of a page is deleted, another one is added."""
    with engine() as made, plugin(made) as one:
        handles = sorted(one.create(f"page-{number}", MIB) for number in range(5))
        first = one.controller.ListVolumes(csi_pb2.ListVolumesRequest(max_entries=3))
        assert [entry.volume.volume_id for entry in first.entries] == handles[:3]
        one.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=handles[2]))
        added = one.create("page-added", MIB)
        rest = one.controller.ListVolumes(csi_pb2.ListVolumesRequest(starting_token=first.next_token)).entries
        shown = [entry.volume.volume_id for entry in rest if entry.volume.volume_id != added]
        assert shown == handles[3:]


def test_tokens_outlive_engine_and_plugin() -> None:
    with engine() as made, plugin(made) as running:
        volumes = [running.create(f"v{number}", MIB) for number in range(5)]
        for number, volume in enumerate(volumes):
            running.snapshot(volume, f"s{number}")
        listings: list[tuple[Any, Any, Any]] = [
            ("ListVolumes", csi_pb2.ListVolumesRequest, lambda answer: [entry.volume.volume_id for entry in answer.entries]),
            ("ListSnapshots", csi_pb2.ListSnapshotsRequest,
             lambda answer: [entry.snapshot.snapshot_id for entry in answer.entries]),
        ]  # fmt: skip
        for method, kind, ids in listings:
            everything = ids(getattr(running.controller, method)(kind()))
            assert len(everything) == 5
            seen, token = [], ""
            while True:
                answer = getattr(running.controller, method)(kind(max_entries=2, starting_token=token))
                seen += ids(answer)
                token = answer.next_token
                if not token:
                    break
                running.kill()
                made.kill()
                made.start()
                running.start()
            assert seen == everything


def test_many_calls_at_once_leave_no_orphan() -> None:
    """50 callers, who ask for the same things, and give up at any moment: what is listed is all that there is."""
    with engine() as made, plugin(made) as running:

        def work(number: int) -> None:
            chance = random.Random(number)
            for _ in range(6):
                name = f"v{chance.randrange(12)}"
                volume = csi_pb2.CreateVolumeRequest(
                    name=name, volume_capabilities=[mount_capability()],
                    capacity_range=csi_pb2.CapacityRange(required_bytes=MIB),
                )  # fmt: skip
                answer = perhaps(chance, running.controller.CreateVolume, volume)
                if answer is None:
                    continue
                handle = answer.volume.volume_id
                for _ in range(chance.randrange(1, 3)):
                    if chance.random() < 0.5:
                        request = csi_pb2.CreateSnapshotRequest(source_volume_id=handle, name=f"s-{name}-{number % 20}")
                        made_one = perhaps(chance, running.controller.CreateSnapshot, request)
                        if made_one is not None and chance.random() < 0.5:
                            gone = csi_pb2.DeleteSnapshotRequest(snapshot_id=made_one.snapshot.snapshot_id)
                            perhaps(chance, running.controller.DeleteSnapshot, gone)
                    else:
                        perhaps(chance, running.controller.DeleteVolume, csi_pb2.DeleteVolumeRequest(volume_id=handle))

        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            list(pool.map(work, range(50)))
        wait_until(lambda: not any(item["state"] == "uploading" for item in made.call("snapshot.list")["snapshots"]))
        repository = made.state.parent / "repository" / "snapshots"

        def is_settled() -> bool:
            """A call that was given up may still be in hand."""
            listed = {entry.snapshot.snapshot_id.rpartition(":")[2]
                      for entry in running.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest()).entries}  # fmt: skip
            committed, pending = set(), set()
            for folder in repository.iterdir() if repository.exists() else ():
                if (folder / "manifest.json").exists() and not (folder / "deleted.json").exists():
                    committed |= {folder.name} if b'"aborted"' not in (folder / "manifest.json").read_bytes() else set()
                elif (folder / "pending.json").exists() and not (folder / "manifest.json").exists():
                    pending.add(folder.name)
            on_disk = {path.name for path in (made.state / "volumes").iterdir()}
            volumes = running.controller.ListVolumes(csi_pb2.ListVolumesRequest()).entries
            shown = {entry.volume.volume_id.rpartition(":")[2] for entry in volumes}
            return (committed, pending, on_disk) == (listed, set(), shown)

        wait_until(is_settled)
        for snapshot in running.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest()).entries:
            running.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot.snapshot_id))
        volumes = running.controller.ListVolumes(csi_pb2.ListVolumesRequest()).entries
        for entry in volumes:
            running.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=entry.volume.volume_id), timeout=150)
        assert list((made.state / "volumes").iterdir()) == []
        assert list((made.state / "run/disks").iterdir()) == list((made.state / "dev").iterdir()) == []
        assert made.call("engine.info")["processes"]["volumes"] == {}
        assert "Traceback" not in made.log.read_text() + running.log.read_text()


def perhaps(chance: random.Random, call: Any, request: Any) -> Any:
    """A call's answer; None if it was given up at some moment, or refused as one of many at once may be."""
    asked = call.future(request, timeout=150)
    if chance.random() < 0.3:
        time.sleep(chance.choice((0, 0.002, 0.01, 0.05)))
        asked.cancel()
    try:
        return asked.result()
    except grpc.FutureCancelledError:
        return None
    except grpc.RpcError as error:
        allowed = ("ABORTED", "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS", "INTERNAL")
        assert error.code().name in allowed, error
        assert error.code().name != "INTERNAL" or "deleted" in str(error.details()), error
        return None
