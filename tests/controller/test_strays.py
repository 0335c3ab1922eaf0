"""Volumes without a PersistentVolume: those that a claim has left are removed, the others are shown."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from csi import csi_pb2
from driver.controller.inventory import Listed, listed
from driver.controller.seen import VolumeSeen
from driver.controller.strays import Strays, left_behind, without_pv
from driver.rpc.names import MAKING_KEY, NAME_KEY
from tests.clusters import Cluster, cluster
from tests.controller.test_routing import create, delete, volume_of
from tests.waiting import wait_until


def test_what_is_still_being_made_is_known_as_such() -> None:
    contexts = ({NAME_KEY: "pvc-1"}, {NAME_KEY: "pvc-2", MAKING_KEY: "true"})
    entries = [
        csi_pb2.ListVolumesResponse.Entry(volume=csi_pb2.Volume(volume_id="node-a:1", volume_context=context))
        for context in contexts
    ]  # fmt: skip
    assert [(volume.name, volume.is_made) for volume in listed(entries)] == [("pvc-1", True), ("pvc-2", False)]


def test_only_what_its_claim_has_left_may_go() -> None:
    def seen(name: str, handle: str, driver: str = "csi.stillframe.io") -> VolumeSeen:
        return VolumeSeen(name, driver, handle)

    names = ("pvc-1", "pvc-2", "pvc-3", "pvc-4")
    left, kept, fresh, bound = (Listed(f"node-a:{name}", name, 1) for name in names)
    known = [seen("pvc-1", "node-b:9"), seen("pvc-2", "other:1", "csi.example.org"), seen("static", bound.handle)]
    known.append(seen("pvc-4", "node-b:8"))
    orphans = without_pv([left, kept, fresh, bound], known)
    assert orphans == [left, kept, fresh]
    assert left_behind(orphans, known) == [left]


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster() as made:
        made.controller("--lease", "another")
        for name in ("node-a", "node-b"):
            made.node(name)
        yield made


def strays(of: Cluster, identity: str) -> Strays:
    """A replica's, with its own view of the cluster."""
    replica = of.replica(identity)
    return Strays(replica.nodes, replica.kube, replica.lease)


def metrics(of: Strays) -> str:
    registry = CollectorRegistry()
    registry.register(of)
    return generate_latest(registry).decode()


def test_what_no_claim_has_is_shown_by_one_replica_and_by_a_command(two: Cluster) -> None:
    controller = two.controllers[0]
    orphan = create(controller, "pvc-orphan", "node-a")
    bound = create(controller, "pvc-bound", "node-b")
    two.api.put_volume("pvc-bound", bound)
    one, other = strays(two, "one"), strays(two, "other")
    one.turn()
    assert orphan not in metrics(one), "it may have been made a moment ago"
    one.turn()
    other.turn()
    other.turn()
    assert f'stillframe_volume_without_pv{{name="pvc-orphan",node="node-a",volume="{orphan}"}} 1.0' in metrics(one)
    assert bound not in metrics(one) and orphan not in metrics(other)
    shown = two.command("--output", "json", "controller", "orphans", "--endpoint", controller.endpoint)
    assert shown.returncode == 0, shown.stderr
    assert orphan in shown.stdout and bound not in shown.stdout
    two.nodes["node-b"].kill()
    shown = two.command("controller", "orphans", "--endpoint", controller.endpoint)
    assert shown.returncode == 0, shown.stderr
    assert orphan in shown.stdout and "not known: the volumes of node-b," in shown.stdout
    delete(controller, orphan)
    one.turn()
    assert orphan not in metrics(one)
    two.nodes["node-b"].run()
    two.nodes["node-b"].wait_known()
    delete(controller, bound)


def test_a_claim_that_moved_on_leaves_nothing_behind(two: Cluster) -> None:
    """Made on node-a, whose answer was lost; then node-a was NotReady, and the claim was scheduled to node-b."""
    controller = two.controllers[0]
    lost = create(controller, "pvc-1", "node-a")
    two.api.put_node("node-a", ready=False)

    def is_refused() -> bool:
        try:
            controller.controller.CreateVolume(volume_of("pvc-1", "node-a"), timeout=60)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return True
        return False

    wait_until(is_refused)
    bound = create(controller, "pvc-1", "node-b")
    two.api.put_volume("pvc-1", bound)
    looker = strays(two, "one")
    looker.turn()
    assert two.nodes["node-a"].volumes() == {"pvc-1": lost}
    two.api.put_node("node-a")

    def is_gone() -> bool:
        looker.turn()
        return two.nodes["node-a"].volumes() == {}

    wait_until(is_gone)
    assert two.nodes["node-b"].volumes() == {"pvc-1": bound}
