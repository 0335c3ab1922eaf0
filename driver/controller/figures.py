"""Prometheus' view of the controller: the cluster's nodes, and how long the certificates last. Any thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from driver.controller.cluster import Cluster, State
from driver.rpc.tls import Source


class Figures(Collector):
    """Told at each scrape from what is known; nobody is asked."""

    def __init__(self, cluster: Cluster, source: Source) -> None:
        self._cluster = cluster
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is, is known at a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        nodes = GaugeMetricFamily("stillframe_nodes", "Nodes by what can be expected of them", labels=["state"])
        counts = Counter(place.state for place in self._cluster.all())
        for state in State:
            nodes.add_metric([state.name.lower()], counts[state])
        yield nodes
        expiry = GaugeMetricFamily(
            "stillframe_certificate_expiry_timestamp_seconds", "When the certificate that the controller shows expires"
        )
        held = self._source()
        if held is not None:
            expiry.add_metric([], held.expires().timestamp())
        yield expiry
