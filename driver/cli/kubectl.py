"""`kubectl stillframe`: what can be seen of volumes and snapshots with nothing but access to the Kubernetes API.

How far an upload is, no object of the API says. It is read from the controller's events (docs/controller.md), every ten
seconds anew there: who may list VolumeSnapshots and events in a namespace needs no other right, and above all none to reach
into the driver's privileged pods, by exec, port-forward or proxy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from driver import __version__
from driver.cli import main as command_line
from driver.cli.doctor import report
from driver.cli.kubectl_tables import SnapshotRow, snapshot_rows, volume_rows
from driver.cli.output import Output
from driver.controller.events import UPLOADING
from driver.core.errors import KubernetesUnavailable, NotFound

if TYPE_CHECKING:
    from driver.controller.kube import Kube

_SNAPSHOTS: Final = "/apis/snapshot.storage.k8s.io/v1"
_WATCH_SECONDS: Final = 2.0
_SYSTEM: Final = "stillframe"


@dataclass(frozen=True, slots=True)
class Plugin:
    """`namespace` None means all of them."""

    kube: Kube
    output: Output
    namespace: str | None

    def path(self, group: str, kind: str) -> str:
        """Of a list of namespaced objects, where they are to be listed."""
        return f"{group}/{kind}" if self.namespace is None else f"{group}/namespaces/{self.namespace}/{kind}"


_pass = click.make_pass_decorator(Plugin)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-n", "--namespace", help="[default: that of the context]")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@click.option("--context", "name", help="A context of the kubeconfig [default: the current one]")
@click.option("--output", "-o", "form", type=click.Choice(["text", "json"]), default="text", help="What is printed.")
@click.version_option(__version__, prog_name="kubectl stillframe")
@click.pass_context
def cli(context: click.Context, namespace: str | None, all_namespaces: bool, name: str | None, form: str) -> None:
    """Volumes and snapshots of Stillframe in a cluster. Needs a kubeconfig ($KUBECONFIG, or ~/.kube/config)."""
    from driver.controller.kube import Kube, namespace_of  # takes a second, which --help need not wait for

    where = None if all_namespaces else namespace or namespace_of(name)
    context.obj = Plugin(Kube(where or "default", name), Output(form), where)


def _allowed(items: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]] | None:
    """None if the user may not list them."""
    try:
        return list(items())
    except KubernetesUnavailable:
        return None


@cli.command()
@_pass
def volumes(plugin: Plugin) -> None:
    """List volumes with their claims, nodes, sizes, states and the pods that use them. Needs the right to list
    PersistentVolumes."""
    found = list(plugin.kube.every("/api/v1/persistentvolumes"))
    pods = _allowed(lambda: plugin.kube.every(plugin.path("/api/v1", "pods")))
    rows = volume_rows(found, pods, plugin.namespace)
    shown = [
        [row.namespace or "-", row.claim or "-", row.volume, row.node, row.size, row.state,
         ", ".join(row.pods or ()) or ("-" if row.pods is not None else "?")]
        for row in rows
    ]  # fmt: skip
    columns = ["NAMESPACE", "CLAIM", "VOLUME", "NODE", "SIZE", "STATE", "PODS"]
    plugin.output.table({"volumes": [asdict(row) for row in rows]}, columns, shown)


@cli.command()
@click.argument("name", required=False)
@click.option("--watch", "-w", is_flag=True, help="Go on until none of them is in the making; a line a change.")
@_pass
def snapshots(plugin: Plugin, name: str | None, watch: bool) -> None:
    """List VolumeSnapshots, or the one called NAME, with how far their uploads are."""
    rows = _snapshots(plugin, name)
    if name is not None and not rows:
        where = f"namespace {plugin.namespace!r}" if plugin.namespace else "any namespace"
        raise NotFound(f"there is no VolumeSnapshot {name!r} in {where}", "see: kubectl get volumesnapshots -A")
    columns = ["NAMESPACE", "NAME", "CLAIM", "STATE", "DONE", "SIZE", "CUT", "NOTE"]
    plugin.output.table({"snapshots": [asdict(row) for row in rows]}, columns, [_shown(row) for row in rows])
    while watch and any(row.is_in_the_making for row in rows):
        time.sleep(_WATCH_SECONDS)
        before, rows = rows, _snapshots(plugin, name)
        for row in rows:
            if row not in before:
                plugin.output.row(asdict(row), _shown(row))


def _snapshots(plugin: Plugin, name: str | None) -> Sequence[SnapshotRow]:
    kube = plugin.kube
    found = list(kube.every(plugin.path(_SNAPSHOTS, "volumesnapshots")))
    classes = _allowed(lambda: kube.every(f"{_SNAPSHOTS}/volumesnapshotclasses"))
    selector = f"involvedObject.kind=VolumeSnapshot,reason={UPLOADING}"
    events = _allowed(lambda: kube.every(plugin.path("/api/v1", "events"), fieldSelector=selector))
    return [row for row in snapshot_rows(found, classes, events or ()) if name in (None, row.name)]


def _shown(row: SnapshotRow) -> list[str]:
    done = f"{row.percent} %" if row.percent is not None else "-"
    return [row.namespace, row.name, row.claim, row.state, done, row.size, row.cut or "-", row.note or "-"]


@cli.command()
@click.option("--system", default=_SYSTEM, show_default=True, help="The namespace that Stillframe is installed in.")
@_pass
def doctor(plugin: Plugin, system: str) -> None:
    """Check the installation: CRDs, CSIDriver, pods, nodes, versions, classes. Exits with 20 if something must be mended.

    Kernels, privileges and the keys of repositories cannot be seen from here: it says with which commands to ask each node.
    """
    from driver.cli.doctor_cluster import gather
    from driver.cli.doctor_cluster_checks import cluster_checks

    report(plugin.output, cluster_checks(gather(plugin.kube, system)))


def main() -> None:
    """The program `kubectl-stillframe`, which kubectl finds on PATH."""
    command_line.main(cli)


if __name__ == "__main__":
    main()
