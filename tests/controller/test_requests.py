"""What the controller asks of a repository on an S3 server: little, and not for longer than who asks it waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from csi import csi_pb2
from tests.clusters import Cluster, cluster
from tests.controller.test_routing import create
from tests.servers import S3Server, credentials_file, repository_tables
from tests.transfer.proxy import Proxy
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def proxy(versitygw: S3Server) -> Iterator[Proxy]:
    """The controller's way to the server; nodes have their own."""
    made = Proxy(versitygw.port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(versitygw: S3Server, proxy: Proxy) -> Iterator[Cluster]:
    with cluster() as made:
        keys = str(credentials_file(made.folder))
        fields = {"url": f"s3://{versitygw.make_bucket()}/prefix", "credentials": keys}
        repository_tables(made.folder / "state", remote={**fields, "endpoint": proxy.endpoint})
        made.controller("--gc-interval", "0")
        node = made.node("node-a")
        repository_tables(node.engine.state, remote={**fields, "endpoint": versitygw.endpoint})
        yield made


def test_a_poll_of_a_group_that_is_ready_reads_no_manifest(shared: Cluster, proxy: Proxy) -> None:
    controller = shared.controllers[0]
    volumes = [create(controller, f"pvc-{number}", "node-a") for number in range(3)]
    alone = csi_pb2.CreateSnapshotRequest(source_volume_id=volumes[0], name="alone")
    wait_until(lambda: controller.controller.CreateSnapshot(alone, timeout=60).snapshot.ready_to_use, 60)
    ask = csi_pb2.CreateVolumeGroupSnapshotRequest(name="together", source_volume_ids=volumes)

    def made() -> csi_pb2.VolumeGroupSnapshot | None:
        group = controller.groups.CreateVolumeGroupSnapshot(ask, timeout=60).group_snapshot
        return group if group.ready_to_use else None

    group = wait_until(made, 60)
    before = len(proxy.seen)
    assert made() == group
    created = {path for _, path in proxy.seen[before:]}
    before = len(proxy.seen)
    ids = {item.snapshot_id for item in group.snapshots}
    look = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)
    found = controller.groups.GetVolumeGroupSnapshot(look, timeout=60).group_snapshot
    assert found.ready_to_use and {item.snapshot_id for item in found.snapshots} == ids
    looked = {path for _, path in proxy.seen[before:]}
    assert (len(created), len(looked)) == (len(volumes) + 2, 2), (created, looked)
    assert not [path for path in created | looked if "manifest.json" in path]
