"""`stillframe volume`: create, clone, list, show, attach, detach, grow, delete."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import click

from driver.cli.context import SIZE, Context, pass_context
from driver.core.errors import FailedPrecondition, NotFound, StillframeError
from driver.core.sizes import format_size

_POLL_SECONDS: Final = 0.05


@click.group()
def volume() -> None:
    """Block volumes: each is a file on this host's disk with a block device on it."""


def _status(shown: dict[str, Any]) -> str:
    if shown["state"] != "available":
        return str(shown["state"])
    return "attached" if shown["attached"] else "detached"


def _show(context: Context, shown: dict[str, Any]) -> None:
    context.output.fields(
        shown,
        [
            ("name", shown["name"]),
            ("id", shown["id"]),
            ("size", f"{format_size(shown['size_bytes'])} ({shown['size_bytes']} bytes)"),
            ("on disk", format_size(shown["allocated_bytes"])),
            ("provisioning", shown["provisioning"]),
            ("block size", str(shown["logical_block_size"])),
            ("status", _status(shown)),
            ("device", shown["device"] or "-"),
            ("created", shown["created"]),
            ("made from", shown["source_snapshot"] or shown["source_volume"] or "-"),
            ("conditions", "; ".join(item["message"] for item in shown["conditions"]) or "none"),
            ("snapshot in progress", shown["snapshot_in_progress"] or "-"),
        ],
    )


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="Such as 10Gi; rounded up to 64 KiB.")
@click.option("--thin", is_flag=True, help="Take disk space as it is written, not at once.")
@click.option("--block-size", type=click.Choice(["512", "4096"]), default="4096", show_default=True,
              help="Logical block size.")  # fmt: skip
@pass_context
def create(context: Context, name: str, size: int, thin: bool, block_size: str) -> None:
    """Create a volume."""
    shown = context.client.call(
        "volume.create", name=name, size_bytes=size, provisioning="thin" if thin else "thick",
        logical_block_size=int(block_size), new=True,
    )  # fmt: skip
    context.output.result(shown, f"created {name}, {format_size(shown['size_bytes'])}")


@volume.command()
@click.argument("source")
@click.argument("name")
@click.option("--size", type=SIZE, help="At least the source's, which is the default.")
@click.option("--thin", is_flag=True, help="Take disk space as it is written, not at once.")
@pass_context
def clone(context: Context, source: str, name: str, size: int | None, thin: bool) -> None:
    """Create a volume that holds what SOURCE holds at this moment. SOURCE may be in use; no repository is."""
    shown = context.client.call(
        "volume.clone", source=source, name=name, size_bytes=size, provisioning="thin" if thin else None
    )
    while shown["state"] == "restoring":
        time.sleep(_POLL_SECONDS)
        job = shown["restore_job"]
        try:
            shown = context.client.call("volume.show", name=name)
        except NotFound:
            raise _why(context, source, job) from None
    context.output.result(shown, f"cloned {source} into {name}, {format_size(shown['size_bytes'])}")


def _why(context: Context, source: str, job: str) -> StillframeError:
    """What a clone has failed with."""
    with contextlib.suppress(NotFound):
        return StillframeError.from_message(context.client.call("job.status", job=job)["error"])
    return FailedPrecondition(f"volume {source!r} was not cloned: the engine was started again meanwhile", "clone it again")


@volume.command(name="list")
@pass_context
def list_(context: Context) -> None:
    """List the volumes of this host."""
    listed = context.client.call("volume.list")
    rows = [
        [v["name"], format_size(v["size_bytes"]), format_size(v["allocated_bytes"]), v["provisioning"], _status(v),
         v["device"] or "-"]
        for v in listed["volumes"]
    ]  # fmt: skip
    context.output.table(listed, ["NAME", "SIZE", "ON DISK", "PROVISIONING", "STATUS", "DEVICE"], rows)


@volume.command()
@click.argument("name")
@pass_context
def show(context: Context, name: str) -> None:
    """Show one volume."""
    _show(context, context.client.call("volume.show", name=name))


@volume.command()
@click.argument("name")
@pass_context
def attach(context: Context, name: str) -> None:
    """Make a volume's block device, and print its path."""
    shown = context.client.call("volume.attach", name=name)
    context.output.result(shown, shown["device"])


@volume.command()
@click.argument("name")
@pass_context
def detach(context: Context, name: str) -> None:
    """Take a volume's block device away."""
    context.output.result(context.client.call("volume.detach", name=name), f"detached {name}")


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="The new size.")
@pass_context
def grow(context: Context, name: str, size: int) -> None:
    """Make a volume larger, also while it is in use. Its file system is yours to grow."""
    shown = context.client.call("volume.grow", name=name, size_bytes=size)
    context.output.result(shown, f"{name} has {format_size(shown['size_bytes'])}")


@volume.command()
@click.argument("name")
@pass_context
def delete(context: Context, name: str) -> None:
    """Delete a volume and its data. Its snapshots stay."""
    context.client.call("volume.delete", name=name)
    context.output.result({"deleted": name}, f"deleted {name}")
