"""Garbage collection by the controller: by one replica, once an interval, whoever is started anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from driver.controller.clones import snapshot_name
from driver.controller.garbage import AGAIN_SECONDS, Garbage
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.repositories import Repositories, Summary
from driver.core.errors import InvalidArgument
from driver.core.ids import new_id, snapshot_id
from driver.core.settings import Repository
from driver.core.sizes import parse_duration
from driver.store import layout
from driver.store.open import open_store
from driver.store.port import ObjectStore
from driver.store.retry import BRIEF
from driver.transfer import catalog
from driver.transfer.records import Named
from tests.apiserver import NAMESPACE, Api, api_server
from tests.servers import repository_tables

LEASE = "stillframe-controller-garbage"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    server = api_server()
    if server is None:
        pytest.skip("kube-apiserver and etcd are needed: STILLFRAME_TESTBED")
    monkeypatch.setitem(os.environ, "KUBECONFIG", str(server.kubeconfig()))
    yield server
    server.clear()


class Watched(Repositories):
    """Notes for how long the lease says that nobody need collect, while a collection is in hand."""

    seconds = 0

    def collect(self, name: str, node: str) -> Summary:
        self.seconds = noted().spec.lease_duration_seconds
        return super().collect(name, node)


def noted() -> Any:
    return Kube(NAMESPACE)._leases.read_namespaced_lease(LEASE, NAMESPACE)


def of_a_clone(store: ObjectStore) -> str:
    """The id of a snapshot that was begun long ago for a clone on another node, and ended."""
    name = snapshot_name("pvc-1", 0)
    known = Named(snapshot_id(name), name)
    of = catalog.Beginning(known, Named(new_id(), "pvc-0"), new_id(), "node-a")
    catalog.write_pending(store, of, "2020-01-01T00:00:00+00:00")
    catalog.fence(store, known.id, "nothing was heard of it")
    return known.id


def test_an_orphan_goes_once_an_interval_and_sooner_after_a_failure(api: Api, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    repository_tables(tmp_path, **{name: {"url": f"file://{tmp_path}/{name}"} for name in ("one", "two")})
    orphan = layout.pack(new_id(), new_id())
    store = open_store(Repository("one", f"file://{tmp_path}/one"), BRIEF)
    catalog.open_repository(store)

    def put() -> None:
        store.put(orphan, [b"x"])
        os.utime(tmp_path / "one" / orphan, (1e9, 1e9))

    registries = [CollectorRegistry(), CollectorRegistry()]
    watched = Watched(tmp_path)
    leases = [Lease(Kube(NAMESPACE), "stillframe-controller", name) for name in ("a", "b")]
    replicas = [
        Garbage(watched, Kube(NAMESPACE), held, "stillframe-controller", name, 7200, registry)
        for name, held, registry in zip(("a", "b"), leases, registries, strict=True)
    ]
    put()
    left = of_a_clone(store)
    assert not replicas[0].turn(), "it does not act for all replicas"
    assert store.head(layout.tombstone(left)) is None
    leases[0].renew()
    assert replicas[0].turn()
    assert watched.seconds == AGAIN_SECONDS, "one that is cut off is made up for"
    assert store.head(orphan) is None
    assert store.head(layout.tombstone(left)) is not None, "nobody else deletes what a clone left behind"
    put()
    assert not replicas[0].turn()
    leases[0].start()
    leases[0].stop()
    leases[1].renew()
    assert not replicas[1].turn(), "another replica has done it"
    assert store.head(orphan) is not None
    told = generate_latest(registries[0]).decode()
    assert 'stillframe_garbage_collections_total{outcome="done",repository="one"} 1.0' in told
    assert 'stillframe_garbage_freed_bytes_total{repository="one"} 1.0' in told
    assert noted().spec.lease_duration_seconds == 7200
    old = noted()
    old.spec.renew_time = old.spec.renew_time.replace(year=2020)
    Kube(NAMESPACE)._leases.replace_namespaced_lease(LEASE, NAMESPACE, old)
    shutil.rmtree(tmp_path / "two")
    assert replicas[1].turn()
    assert store.head(orphan) is None, "one repository that cannot be had does not keep the others from being collected"
    assert 'outcome="failed",repository="two"} 1.0' in generate_latest(registries[1]).decode()
    assert noted().spec.lease_duration_seconds == AGAIN_SECONDS


def test_intervals() -> None:
    assert [parse_duration(text) for text in ("24h", "90m", "7d", "0", "0h")] == [86400, 5400, 604800, 0, 0]
    for text in ("", "24", "1.5h", "h", "-1h", "1w", "1000000h"):
        with pytest.raises(InvalidArgument, match="is not a time"):
            parse_duration(text)
