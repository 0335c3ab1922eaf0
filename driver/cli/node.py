"""`stillframe node`: the CSI node plugin."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import click
from prometheus_client import CollectorRegistry

from driver.cli.context import Context, pass_context
from driver.core import settings
from driver.core.errors import InvalidArgument
from driver.host import kernel
from driver.node.forwarded import Forwarded
from driver.node.metrics import Engine
from driver.node.registration import Registration
from driver.node.server import Plugin
from driver.rpc import logs, metrics
from driver.rpc.calls import CallInterceptor
from driver.rpc.sockets import listen, until_told


@click.group(invoke_without_command=True)
@click.option("--endpoint", default="unix:///run/stillframe/csi.sock", show_default=True, help="Where CSI is served.")
@click.option("--node", "name", default=lambda: os.uname().nodename, show_default="the host's name",
              help="The node's name, as the engine has it.")  # fmt: skip
@click.option("--standalone", is_flag=True, help="Serve CSI's Controller and GroupController too, for this node alone.")
@click.option("--max-volumes", type=click.IntRange(0), default=100, show_default=True,
              help="Volumes of a node; 0: no limit.")  # fmt: skip
@click.option("--registration", type=click.Path(path_type=Path, file_okay=False), help="kubelet's plugins_registry folder.")
@click.option("--kubelet-endpoint", help="The CSI socket's path as kubelet sees it [default: that of --endpoint]")
@click.option("--http", "port", type=click.IntRange(0, 65535), help="Port of /metrics, /healthz and /readyz.")
@click.option("--listen", "address", help="Serve Controller and GroupController at [HOST]:PORT to the controller plugin.")
@click.option("--tls", "folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of ca.crt, tls.crt and tls.key for --listen.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Log what is asked and answered, without secrets.")
@pass_context
@click.pass_context
def node(
    given: click.Context, context: Context, endpoint: str, name: str, standalone: bool, max_volumes: int,
    registration: Path | None, kubelet_endpoint: str | None, port: int | None, address: str | None, folder: Path | None,
    debug: bool,
) -> None:  # fmt: skip
    """Run the CSI node plugin in the foreground, until it is stopped (SIGTERM)."""
    if given.invoked_subcommand is not None:
        return
    logs.configure(debug)
    kernel.no_core_dump()
    registry = CollectorRegistry()
    calls = metrics.Calls(registry)
    interceptors = [CallInterceptor(calls.observe)]
    plugin = Plugin(
        endpoint, context.client, name, volumes_max=max_volumes, standalone=standalone, interceptors=interceptors
    )
    registry.register(Engine(plugin.here))
    forwarded = None
    if address is not None and folder is not None:
        forwarded = Forwarded(address, folder, plugin.here, interceptors)
    elif address is not None or folder is not None:
        raise InvalidArgument("--listen and --tls go together", "give both: the controller plugin calls over mutual TLS")
    plugin.start()
    if forwarded is not None:
        forwarded.start()
    told = threading.Event()
    refused: list[str] = []

    def on_refusal(error: str) -> None:
        refused.append(error)
        told.set()


    def why_not() -> str | None:
        return plugin.identity.why_not() or (forwarded.hindrance if forwarded is not None else None)

    if port is not None:
        port = metrics.serve(port, registry, why_not)
    registered = None
    if registration is not None:
        registered = Registration(registration, kubelet_endpoint or str(plugin.path), on_refusal)
        registered.start(listen)
    logs.log().info("CSI is served", endpoint=str(plugin.path), node=plugin.here.node, http=port)
    until_told(told)
    if registered is not None:
        registered.stop()
    if forwarded is not None:
        forwarded.stop()
    plugin.stop()
    if refused:
        sys.exit(f"kubelet refused the driver: {refused[0]}")


@node.command()
@click.argument("name")
@click.option("--namespace", default=settings.own_namespace, show_default="the pod's own, or default",
              help="Where the controller plugin runs.")  # fmt: skip
@pass_context
def forget(context: Context, name: str, namespace: str) -> None:
    """Declare the node NAME gone for good: its volumes are gone with it, and their claims can be deleted.

    Refused while Kubernetes has a node of that name.
    """
    from driver.controller.forgotten import Forgotten
    from driver.controller.kube import Kube

    Forgotten(Kube(namespace)).add(name)
    context.output.result({"forgotten": name}, f"forgot node {name}: its volumes are taken for gone")
