"""The secrets with the certificates, in a real API: replicas that race, what is renewed, and what a node sees of it."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from csi import csi_pb2
from driver.controller import authority
from driver.controller.kube import Kube
from driver.controller.secrets import TlsSecrets
from driver.rpc.tls import CONTROLLER_NAME, NODE_NAME, Certificates
from tests.apiserver import NAMESPACE
from tests.clusters import Cluster, cluster
from tests.controller.test_routing import create, delete


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster() as made:
        monkeypatch.setitem(os.environ, "KUBECONFIG", str(made.api.kubeconfig()))
        yield made


def held(secret: dict[str, bytes]) -> Certificates:
    return Certificates(secret["ca.crt"], secret["tls.crt"], secret["tls.key"])


def test_replicas_that_race_agree(empty: Cluster) -> None:
    replicas = [TlsSecrets(Kube(NAMESPACE), "stillframe-tls") for _ in range(6)]
    at_once = threading.Barrier(len(replicas))

    def begin(replica: TlsSecrets) -> None:
        at_once.wait(150)
        replica.ensure()

    with concurrent.futures.ThreadPoolExecutor(len(replicas)) as pool:
        for _ in pool.map(begin, replicas):
            pass
    assert len({replica.certificates() for replica in replicas}) == 1
    now = datetime.now(UTC)
    controller, node = empty.secret("controller"), empty.secret("node")
    ours = authority.load(controller["ca.crt"], controller["ca.key"])
    assert len(ours) == 1
    assert authority.is_good(held(controller), ours[0], CONTROLLER_NAME, now)
    assert authority.is_good(held(node), ours[0], NODE_NAME, now)
    assert set(node) == {"ca.crt", "tls.crt", "tls.key"}, "a node must not hold the authority's key"


def test_certificates_and_authorities_are_renewed_in_time(empty: Cluster) -> None:
    now = datetime.now(UTC)
    secrets = TlsSecrets(Kube(NAMESPACE), "stillframe-tls", lambda: now)
    secrets.ensure()
    first, first_node = empty.secret("controller"), empty.secret("node")
    now += timedelta(days=19)
    secrets.ensure()
    assert (empty.secret("controller"), empty.secret("node")) == (first, first_node)
    now += timedelta(days=2)
    secrets.ensure()
    second = empty.secret("controller")
    assert second["tls.crt"] != first["tls.crt"] and second["ca.crt"] == first["ca.crt"]
    assert empty.secret("node")["tls.crt"] != first_node["tls.crt"]
    now += authority.AUTHORITY_LIFE - authority.AUTHORITY_RENEWAL
    secrets.ensure()
    third, node = empty.secret("controller"), empty.secret("node")
    both = authority.load(third["ca.crt"], third["ca.key"])
    assert len(both) == 2 and node["ca.crt"] == third["ca.crt"]
    assert authority.is_good(held(node), both[0], NODE_NAME, now), "not everybody trusts the new authority yet"
    now += authority.SETTLING
    secrets.ensure()
    assert authority.is_good(held(empty.secret("node")), both[1], NODE_NAME, now)
    assert authority.is_good(held(empty.secret("controller")), both[1], CONTROLLER_NAME, now)


def test_a_secret_that_somebody_spoilt_or_deleted_is_made_again(empty: Cluster) -> None:
    secrets = TlsSecrets(Kube(NAMESPACE), "stillframe-tls")
    secrets.ensure()
    empty.api.core.patch_namespaced_secret("stillframe-tls-node", NAMESPACE, {"data": {"tls.key": "c3BvaWx0"}})
    empty.api.core.delete_namespaced_secret("stillframe-tls-controller", NAMESPACE)
    secrets.ensure()
    controller, node = empty.secret("controller"), empty.secret("node")
    ours = authority.load(controller["ca.crt"], controller["ca.key"])
    assert authority.is_good(held(node), ours[0], NODE_NAME, datetime.now(UTC))
    assert node["ca.crt"] == controller["ca.crt"]


def test_replicas_serve_at_once_and_with_a_named_secret(empty: Cluster) -> None:
    """Two replicas with the secrets that they make, a third with a folder that somebody else fills."""
    first, second = empty.controller(), empty.controller()
    node = empty.node("node-a")
    folder = empty.folder / "named"
    folder.mkdir()
    for key, value in empty.secret("controller").items():
        if key != "ca.key":
            (folder / key).write_bytes(value)
    third = empty.controller("--tls", str(folder))
    handle = create(first, "pvc-1", "node-a")
    for replica in (second, third):
        assert create(replica, "pvc-1", "node-a") == handle
    node.kill()
    empty.api.core.delete_namespaced_secret("stillframe-tls-node", NAMESPACE)
    node.run()
    node.wait_known()
    delete(third, handle)
    get = csi_pb2.ControllerGetVolumeRequest(volume_id=handle)
    with pytest.raises(Exception, match="NOT_FOUND"):
        second.controller.ControllerGetVolume(get, timeout=60)
