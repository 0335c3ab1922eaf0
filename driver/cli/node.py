"""`stillframe node`: the CSI node plugin."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import click
from prometheus_client import CollectorRegistry

from driver.cli.context import Context, pass_context
from driver.node.metrics import Engine
from driver.node.registration import Registration
from driver.node.server import Plugin
from driver.rpc import logs, metrics
from driver.rpc.calls import CallInterceptor
from driver.rpc.sockets import listen, until_told


@click.command()
@click.option("--endpoint", default="unix:///run/stillframe/csi.sock", show_default=True, help="Where CSI is served.")
@click.option("--node", "name", default=lambda: os.uname().nodename, show_default="the host's name",
              help="The node's name, as the engine has it.")  # fmt: skip
@click.option("--standalone", is_flag=True, help="Serve CSI's Controller and GroupController too, for this node alone.")
@click.option("--max-volumes", type=click.IntRange(0), default=100, show_default=True,
              help="Volumes of a node; 0: no limit.")  # fmt: skip
@click.option("--registration", type=click.Path(path_type=Path, file_okay=False), help="kubelet's plugins_registry folder.")
@click.option("--kubelet-endpoint", help="The CSI socket's path as kubelet sees it [default: that of --endpoint]")
@click.option("--http", "port", type=click.IntRange(0, 65535), help="Port of /metrics, /healthz and /readyz.")
@click.option("--debug", is_flag=True, help="Log what is asked and answered, without secrets.")
@pass_context
def node(
    context: Context, endpoint: str, name: str, standalone: bool, max_volumes: int, registration: Path | None,
    kubelet_endpoint: str | None, port: int | None, debug: bool,
) -> None:  # fmt: skip
    """Run the CSI node plugin in the foreground, until it is stopped (SIGTERM)."""
    logs.configure(debug)
    registry = CollectorRegistry()
    calls = metrics.Calls(registry)
    registry.register(Engine(context.client))
    plugin = Plugin(
        endpoint, context.client, name, volumes_max=max_volumes, standalone=standalone,
        interceptors=[CallInterceptor(calls.observe)],
    )  # fmt: skip
    plugin.start()
    told = threading.Event()
    refused: list[str] = []

    def on_refusal(error: str) -> None:
        refused.append(error)
        told.set()

    if port is not None:
        port = metrics.serve(port, registry, plugin.identity.why_not)
    registered = None
    if registration is not None:
        registered = Registration(registration, kubelet_endpoint or str(plugin.path), on_refusal)
        registered.start(listen)
    logs.log().info("CSI is served", endpoint=str(plugin.path), node=plugin.here.node, http=port)
    until_told(told)
    if registered is not None:
        registered.stop()
    plugin.stop()
    if refused:
        sys.exit(f"kubelet refused the driver: {refused[0]}")
