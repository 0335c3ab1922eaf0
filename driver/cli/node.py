"""`stillframe node`: the CSI node plugin."""

from __future__ import annotations

import os

import click

from driver.cli.context import Context, pass_context
from driver.node.calls import ErrorInterceptor
from driver.node.server import Plugin, until_told


@click.command()
@click.option("--endpoint", default="unix:///run/stillframe/csi.sock", show_default=True, help="Where CSI is served.")
@click.option("--node", "name", default=lambda: os.uname().nodename, show_default="the host's name",
              help="The node's name, as the engine has it.")  # fmt: skip
@click.option("--standalone", is_flag=True, help="Serve CSI's Controller and GroupController too, for this node alone.")
@click.option("--max-volumes", type=click.IntRange(0), default=100, show_default=True,
              help="Volumes of a node; 0: no limit.")  # fmt: skip
@pass_context
def node(context: Context, endpoint: str, name: str, standalone: bool, max_volumes: int) -> None:
    """Run the CSI node plugin in the foreground, until it is stopped (SIGTERM)."""
    plugin = Plugin(
        endpoint, context.client, name, volumes_max=max_volumes, standalone=standalone, interceptors=[ErrorInterceptor()]
    )
    plugin.start()
    click.echo(f"CSI is served at {plugin.path} for node {plugin.here.node}", err=True)
    until_told()
    plugin.stop()
