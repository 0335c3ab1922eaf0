"""`stillframe controller`: the CSI controller plugin; and what it knows of volumes that nobody uses."""

from __future__ import annotations

import os
from pathlib import Path

import click

from driver.cli.context import DURATION, Context, pass_context
from driver.core import settings
from driver.core.sizes import format_size
from driver.rpc import logs

_ENDPOINT = "unix:///csi/csi.sock"
_SELECTOR = "app.kubernetes.io/name=stillframe,app.kubernetes.io/component=node"


@click.group(invoke_without_command=True)
@click.option("--endpoint", default=_ENDPOINT, show_default=True, help="Where CSI is served.")
@click.option("--namespace", default=settings.own_namespace, show_default="the pod's own, or default",
              help="Of the node plugins.")  # fmt: skip
@click.option("--selector", default=_SELECTOR, show_default=True, help="Labels of the node plugins' pods.")
@click.option("--node-port", type=click.IntRange(1, 65535), default=9810, show_default=True,
              help="Port of the node plugins' --listen.")  # fmt: skip
@click.option("--tls-secret", default="stillframe-tls", show_default=True,
              help="Make and renew the secrets NAME-controller and NAME-node.")  # fmt: skip
@click.option("--tls", "folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of ca.crt, tls.crt and tls.key, instead of --tls-secret: somebody else makes them.")  # fmt: skip
@click.option("--lease", default="stillframe-controller", show_default=True, help="Lease of what one replica does.")
@click.option("--identity", default=lambda: os.uname().nodename, show_default="the host's name", help="Who has the lease.")
@click.option("--remake-pods/--keep-pods", default=True, show_default=True,
              help="Delete pods whose volume lost its device, if they have an owner that makes them again.")  # fmt: skip
@click.option("--gc-interval", type=DURATION, default="24h", show_default=True,
              help="Collect the repositories' garbage so often; 0 for never.")  # fmt: skip
@click.option("--http", "port", type=click.IntRange(0, 65535), help="Port of /metrics, /healthz and /readyz.")
@click.option("--debug", is_flag=True, help="Log what is asked and answered, without secrets.")
@pass_context
@click.pass_context
def controller(
    given: click.Context, context: Context, endpoint: str, namespace: str, selector: str, node_port: int, tls_secret: str,
    folder: Path | None, lease: str, identity: str, remake_pods: bool, gc_interval: int, port: int | None,
    debug: bool,
) -> None:  # fmt: skip
    """Run the CSI controller plugin in the foreground, until it is stopped (SIGTERM). The state folder needs only
    repositories.toml."""
    if given.invoked_subcommand is not None:
        return
    from driver.controller.process import Options, run  # the kubernetes package takes long to load

    logs.configure(debug)
    state = context.client.state
    run(
        Options(
            state, endpoint, namespace, selector, node_port, tls_secret, folder, lease, identity, port, remake_pods,
            gc_interval,
        )
    )  # fmt: skip


@controller.command()
@click.option("--endpoint", default=_ENDPOINT, show_default=True, help="Where a controller plugin serves CSI.")
@pass_context
def orphans(context: Context, endpoint: str) -> None:
    """List the volumes that no PersistentVolume has: data that is kept and that nobody uses. Those of nodes that cannot be
    asked are not in it; the nodes are named."""
    from driver.controller import inventory
    from driver.controller.kube import Kube
    from driver.controller.strays import without_pv

    known = inventory.ask(endpoint)
    made = [volume for volume in known.volumes if volume.is_made]
    found = without_pv(made, Kube(settings.own_namespace()).volumes())
    rows = [[orphan.handle, orphan.name, format_size(orphan.size_bytes)] for orphan in found]
    shown = [{"volume": item.handle, "name": item.name, "size_bytes": item.size_bytes} for item in found]
    context.output.table({"volumes": shown, "not_asked": known.missing}, ["VOLUME", "NAME", "SIZE"], rows)
    if known.missing:
        context.output.line(f"not known: the volumes of {', '.join(known.missing)}, which cannot be asked")
