"""What wrong classes, repositories, keys, sizes and handles get: a code that ends or paces the sidecars' calls, and a
message that names the object and the fix. The sidecars put it into the claim's events and the VolumeSnapshot's status."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import csi_pb2
from driver.core.ids import new_id
from tests.clusters import Cluster, Controller, cluster
from tests.controller.test_lost_nodes import snapshot, snapshot_request
from tests.controller.test_routing import create, volume_of
from tests.servers import versitygw_server
from tests.waiting import wait_until

TIB = 1 << 40
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """Two nodes; beside `local` the repositories `locked`, whose keys are wrong, and `keyless`, which has none."""
    server = versitygw_server()
    if server is None:
        pytest.skip("versitygw is not there: set STILLFRAME_VERSITYGW, or STILLFRAME_TESTBED to the test bed's program")
    with cluster() as made:
        keys = made.folder / "keys"
        keys.write_text("[default]\naws_access_key_id = nobody\naws_secret_access_key = wrong\n")
        text = "".join(
            f'[repositories.{name}]\nurl = "s3://backups"\nendpoint = "{server.endpoint}"\nregion = "us-east-1"\n'
            f'credentials = "{path}"\n'
            for name, path in (("locked", keys), ("keyless", made.folder / "none"))
        )
        default = f'[repositories.local]\nurl = "file://{made.folder}/repository"\ndefault = true\n'
        (made.folder / "state/repositories.toml").write_text(default + text)
        made.controller()
        for name in ("node-a", "node-b"):
            made.node(name)
            (made.folder / name / "state/repositories.toml").write_text(default + text)
        yield made


@pytest.fixture
def controller(shared: Cluster) -> Controller:
    return shared.controllers[0]


def refusal(call: Any, request: Any, code: Code, *words: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=60)
    text = str(raised.value.details())
    assert raised.value.code() is code, text
    assert not [word for word in words if word not in text], text


def of_class(volume: str, **parameters: str) -> csi_pb2.CreateSnapshotRequest:
    request = snapshot_request(volume, f"snapshot-{new_id()}")
    request.parameters.update(parameters)
    return request


def test_a_class_with_an_unknown_key_or_a_wrong_value(controller: Controller) -> None:
    request = volume_of("pvc-1", "node-a")
    request.parameters["colour"] = "red"
    calls = controller.controller
    refusal(calls.CreateVolume, request, Code.INVALID_ARGUMENT, "StorageClass", "'colour'", "known ones: ", "make it anew")
    del request.parameters["colour"]
    request.parameters["provisioning"] = "fat"
    refusal(calls.CreateVolume, request, Code.INVALID_ARGUMENT, "StorageClass", "'fat'", "use thick or thin", "make it anew")
    volume = create(controller, "pvc-classes", "node-a")
    refusal(calls.CreateSnapshot, of_class(volume, repositroy="local"), Code.INVALID_ARGUMENT, "VolumeSnapshotClass",
            "'repositroy'", "freeze, onBufferFull, repository")  # fmt: skip
    refusal(calls.CreateSnapshot, of_class(volume, freeze="yes"), Code.INVALID_ARGUMENT, "VolumeSnapshotClass", "'yes'",
            "use true or false")  # fmt: skip
    refusal(calls.CreateSnapshot, of_class(volume, repository="a b"), Code.INVALID_ARGUMENT, "VolumeSnapshotClass", "'a b'")


def test_a_repository_that_is_not_in_the_values(controller: Controller) -> None:
    volume = create(controller, "pvc-repositories", "node-a")
    refusal(controller.controller.CreateSnapshot, of_class(volume, repository="nowhere"), Code.NOT_FOUND, "'nowhere'",
            "known: local, locked, keyless", "the chart's repositories")  # fmt: skip


@pytest.mark.parametrize(("repository", "words"), [
    ("locked", ("'backups'", "check the credentials")), ("keyless", ("credentials file", "'keyless'", "make it")),
])  # fmt: skip
def test_wrong_credentials(controller: Controller, repository: str, words: tuple[str, ...]) -> None:
    """Not sticky: the same VolumeSnapshot is taken once the keys are right, and can be deleted before that."""
    volume = create(controller, "pvc-keys", "node-a")
    refusal(controller.controller.CreateSnapshot, of_class(volume, repository=repository), Code.FAILED_PRECONDITION, *words)


def test_a_claim_that_is_larger_than_any_node_s_room(controller: Controller) -> None:
    large = volume_of("pvc-large", size=8 * TIB)
    large.parameters["provisioning"] = "thick"
    said = ("8.0 TiB are asked of", "free; free space, ask for less, or make it thin", "provisioning: thin")
    refusal(controller.controller.CreateVolume, large, Code.RESOURCE_EXHAUSTED, "node 'node-a'", "node 'node-b'", *said)
    beyond = volume_of("pvc-beyond", "node-a", size=17 * TIB)
    refusal(controller.controller.CreateVolume, beyond, Code.OUT_OF_RANGE, "17.0 TiB", "16 TiB less 64 KiB")


def restore_of(snapshot: str) -> csi_pb2.CreateVolumeRequest:
    request = volume_of(f"pvc-{new_id()}", "node-a")
    request.volume_content_source.snapshot.snapshot_id = snapshot
    return request


def test_a_snapshot_that_is_missing_or_of_another_repository(controller: Controller) -> None:
    calls, number = controller.controller, new_id()
    refusal(calls.CreateVolume, restore_of(f"far:{number}"), Code.NOT_FOUND, "repository 'far'", "the chart's repositories")
    refusal(calls.CreateVolume, restore_of(f"local:{number}"), Code.NOT_FOUND, f"local:{number}", "snapshot list")
    refusal(calls.CreateVolume, restore_of("nonsense"), Code.NOT_FOUND, "'nonsense'", "no id of this driver")
    imported = csi_pb2.ListSnapshotsRequest(snapshot_id=f"far:{number}")
    refusal(calls.ListSnapshots, imported, Code.FAILED_PRECONDITION, "repository 'far'", "the chart's repositories")
    missing = csi_pb2.ListSnapshotsRequest(snapshot_id=f"local:{number}")
    assert not calls.ListSnapshots(missing, timeout=60).entries, "the sidecar says that it is not there"


def test_the_sidecars_ask_at_most_twelve_times_a_minute() -> None:
    """By the back-off that the chart gives them: doubled from the first interval to the last one."""
    text = (Path(__file__).parents[2] / "charts/stillframe/templates/controller/deployment.yaml").read_text()
    assert '"--retry-interval-start=1s" "--retry-interval-max=15s"' in text
    wait, at, calls = 1.0, 0.0, 0
    while at < 60:
        calls, at, wait = calls + 1, at + wait, min(2 * wait, 15.0)
    assert calls <= 12


def test_a_snapshot_whose_manifest_is_damaged_can_be_deleted(shared: Cluster, controller: Controller) -> None:
    """Nothing is collected while it is there."""
    handle = snapshot(controller, create(controller, "pvc-damaged", "node-a"), "damaged")
    folder = shared.folder / "repository/snapshots" / handle.rpartition(":")[2]
    (folder / "manifest.json").write_text("{")
    calls = controller.controller
    refusal(calls.GetSnapshot, csi_pb2.GetSnapshotRequest(snapshot_id=handle), Code.DATA_LOSS, "manifest.json")
    for _ in range(2):
        calls.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=handle), timeout=60)
    assert (folder / "deleted.json").exists()


def test_a_group_with_a_damaged_member_can_be_deleted(shared: Cluster, controller: Controller) -> None:
    volumes = [create(controller, f"pvc-damaged-{number}", "node-a") for number in range(2)]
    ask = csi_pb2.CreateVolumeGroupSnapshotRequest(name="damaged", source_volume_ids=volumes)

    def made() -> csi_pb2.VolumeGroupSnapshot | None:
        group = controller.groups.CreateVolumeGroupSnapshot(ask, timeout=60).group_snapshot
        return group if group.ready_to_use else None

    group = wait_until(made)
    ids = [item.snapshot_id for item in group.snapshots]
    folders = [shared.folder / "repository/snapshots" / handle.rpartition(":")[2] for handle in ids]
    (folders[0] / "manifest.json").write_text("{")
    get = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    refusal(controller.groups.GetVolumeGroupSnapshot, get, Code.DATA_LOSS, "manifest.json")
    gone = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    for _ in range(2):
        controller.groups.DeleteVolumeGroupSnapshot(gone, timeout=60)
    assert [(folder / "deleted.json").exists() for folder in folders] == [True, True]
