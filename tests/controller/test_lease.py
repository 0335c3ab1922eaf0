"""The lease by which one replica acts, in a real API: races, a holder that dies or gives it up, an API that is away."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Iterator

import pytest
from kubernetes import client

from driver.controller.kube import Kube
from driver.controller.lease import ACT_SECONDS, LASTS_SECONDS, RENEW_SECONDS, Lease, may_take
from driver.controller.seen import LeaseSeen
from driver.core.errors import KubernetesUnavailable
from tests.apiserver import NAMESPACE
from tests.clusters import Cluster, cluster
from tests.waiting import wait_until

NAME = "stillframe-controller"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster() as made:
        monkeypatch.setitem(os.environ, "KUBECONFIG", str(made.api.kubeconfig()))
        yield made


def test_who_may_take_it() -> None:
    theirs = LeaseSeen("other", 45, "7")
    assert may_take(None, "me", 0)
    assert may_take(LeaseSeen("", 45, "7"), "me", 0)
    assert may_take(LeaseSeen("me", 45, "7"), "me", 0)
    assert not may_take(theirs, "me", 44.9)
    assert may_take(theirs, "me", 45)
    assert RENEW_SECONDS < ACT_SECONDS < LASTS_SECONDS


def test_replicas_that_race_for_it_agree(empty: Cluster) -> None:
    replicas = [Lease(Kube(NAMESPACE), NAME, f"replica-{number}") for number in range(6)]
    at_once = threading.Barrier(len(replicas))

    def begin(replica: Lease) -> None:
        at_once.wait(150)
        replica.renew()

    with concurrent.futures.ThreadPoolExecutor(len(replicas)) as pool:
        for _ in pool.map(begin, replicas):
            pass
    assert [replica.is_mine for replica in replicas].count(True) == 1


def test_a_holder_that_dies_stops_acting_before_another_begins(empty: Cluster) -> None:
    clock = Clock()
    dead, heir = (Lease(Kube(NAMESPACE), NAME, name, clock) for name in ("dead", "heir"))
    dead.renew()
    heir.renew()
    assert dead.is_mine and not heir.is_mine
    clock.now += ACT_SECONDS - 1
    heir.renew()
    assert dead.is_mine and not heir.is_mine
    clock.now += 1
    assert not dead.is_mine
    clock.now += LASTS_SECONDS - ACT_SECONDS - 1
    heir.renew()
    assert not heir.is_mine
    clock.now += 1
    heir.renew()
    assert heir.is_mine
    dead.renew()
    assert not dead.is_mine, "it came back, and the lease is another's"


def test_renewals_that_are_seen_keep_others_away(empty: Cluster) -> None:
    clock = Clock()
    holder, other = (Lease(Kube(NAMESPACE), NAME, name, clock) for name in ("holder", "other"))
    for _ in range(8):
        holder.renew()
        other.renew()
        assert holder.is_mine and not other.is_mine
        clock.now += RENEW_SECONDS


def test_what_is_given_up_is_another_s_at_once(empty: Cluster) -> None:
    first, second = (Lease(Kube(NAMESPACE), NAME, name) for name in ("first", "second"))
    first.start()
    second.renew()
    assert first.is_mine and not second.is_mine
    first.stop()
    second.renew()
    assert second.is_mine and not first.is_mine
    shown = client.CoordinationV1Api(empty.api.core.api_client).read_namespaced_lease(NAME, NAMESPACE)
    assert shown.spec is not None and shown.spec.holder_identity == "second"


def test_an_api_that_is_away_for_a_moment_takes_nothing_away(empty: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    lease = Lease(Kube(NAMESPACE), NAME, "one", clock)
    lease.renew()
    empty.api.processes[-1].kill()
    empty.api.processes[-1].wait()
    with pytest.raises(KubernetesUnavailable):
        lease.renew()
    clock.now += ACT_SECONDS - 1
    assert lease.is_mine
    empty.api.restart_server()

    def is_renewed() -> bool:
        try:
            lease.renew()
        except KubernetesUnavailable:  # it knows no roles yet
            return False
        return True

    wait_until(is_renewed)
    clock.now += ACT_SECONDS - 1
    assert lease.is_mine
