"""The controller plugin from its options to its end: what is made, and in which order it starts."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from driver.controller.cluster import Cluster
from driver.controller.everywhere import Everywhere
from driver.controller.figures import Figures
from driver.controller.forgotten import Forgotten
from driver.controller.garbage import Garbage
from driver.controller.herald import Herald
from driver.controller.kube import Kube
from driver.controller.lease import Lease
from driver.controller.nodes import Nodes
from driver.controller.repositories import Repositories
from driver.controller.revive import Revive
from driver.controller.secrets import TlsSecrets
from driver.controller.server import Plugin
from driver.controller.strays import Strays
from driver.host import kernel
from driver.rpc import logs, metrics, tls
from driver.rpc.calls import CallInterceptor
from driver.rpc.sockets import until_told


@dataclass(frozen=True, slots=True)
class Options:
    """Those of `stillframe controller`. `folder` is --tls, `http` None for no port, `gc_seconds` 0 for no collections."""

    state: Path
    endpoint: str
    namespace: str
    selector: str
    node_port: int
    tls_secret: str
    folder: Path | None
    lease: str
    identity: str
    http: int | None
    remake_pods: bool
    gc_seconds: int


def run(given: Options) -> None:
    """Serve until SIGTERM. Main thread only. Raises KubernetesUnavailable without a configuration, FailedPrecondition."""
    kernel.no_core_dump()
    kube = Kube(given.namespace)
    cluster = Cluster(kube, given.selector)
    source = _certificates(kube, given)
    nodes = Nodes(cluster, source, given.node_port)
    registry = CollectorRegistry()
    calls = metrics.Calls(registry)
    lease = Lease(kube, given.lease, given.identity)
    strays = Strays(nodes, kube, lease)
    registry.register(strays)
    registry.register(Figures(cluster, source))
    repositories = Repositories(given.state)
    everywhere = Everywhere(nodes, repositories, Forgotten(kube))
    plugin = Plugin(given.endpoint, everywhere, source, [CallInterceptor(calls.observe)])
    cluster.start()
    plugin.start()
    lease.start()
    strays.start()
    if given.gc_seconds:
        Garbage(repositories, kube, lease, given.lease, given.identity, given.gc_seconds, registry).start()
    Revive(nodes, kube, lease, remake=given.remake_pods).start()
    Herald(nodes, repositories, kube, lease).start()
    port = given.http if given.http is None else metrics.serve(given.http, registry, plugin.why_not)
    logs.log().info("CSI is served", endpoint=str(plugin.path), namespace=given.namespace, http=port)
    until_told(threading.Event())
    lease.stop()
    plugin.stop()


def _certificates(kube: Kube, given: Options) -> tls.Source:
    folder = given.folder
    if folder is not None:
        return lambda: tls.read(folder)
    secrets = TlsSecrets(kube, given.tls_secret)
    secrets.start()
    return secrets.certificates
