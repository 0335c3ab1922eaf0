"""`stillframe snapshot`: create, list, show, verify, restore, delete; `prune` has a file of its own."""

from __future__ import annotations

import sys
from typing import Any

import click

from driver.cli.context import SIZE, Context, pass_context
from driver.cli.prune import prune
from driver.core.errors import SnapshotFailed, StillframeError
from driver.core.sizes import format_size

_repository = click.option("--repository", help="A name from repositories.toml [default: the default one].")


@click.group()
def snapshot() -> None:
    """Snapshots: a volume as it was at one instant, in a repository."""


@snapshot.command()
@click.argument("volume")
@click.option("--name", help="[default: the volume's name and the time]")
@_repository
@click.option("--on-buffer-full", type=click.Choice(["throttle", "fail"]), default="throttle", show_default=True,
              help="When pre-images outgrow memory and spill: slow the writer, or fail the snapshot.")  # fmt: skip
@click.option("--full", is_flag=True, help="Upload everything, not only what changed since the last snapshot.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the upload's end.")
@pass_context
def create(
    context: Context, volume: str, name: str | None, repository: str | None, on_buffer_full: str, full: bool, wait: bool
) -> None:
    """Snapshot a volume. The cut is immediate; the upload goes on while the volume is written. What an earlier snapshot of
    the volume holds is not uploaded again; each snapshot still stands by itself, and any may be deleted."""
    shown = context.client.call(
        "snapshot.create", volume=volume, name=name, repository=repository, on_buffer_full=on_buffer_full, full=full,
        new=True,
    )  # fmt: skip
    if wait and shown["state"] == "uploading":
        shown = _wait(context, shown)
    if shown["state"] not in ("uploading", "committed"):
        error = StillframeError.from_message(shown["error"] or {})
        raise SnapshotFailed(f"snapshot {shown['name']} is {shown['state']}: {error.message}", error.hint)
    context.output.result(shown, f"{shown['state']} {shown['name']} ({shown['handle']}), cut at {shown['created']}")


def _wait(context: Context, shown: dict[str, Any]) -> dict[str, Any]:
    try:
        with context.output.progress(f"snapshot {shown['name']}") as meter:
            return context.client.follow_snapshot(shown, meter)
    except KeyboardInterrupt:
        print(f"the snapshot goes on; see: stillframe snapshot show {shown['handle']}", file=sys.stderr)
        raise


@snapshot.command(name="list")
@_repository
@pass_context
def list_(context: Context, repository: str | None) -> None:
    """List the snapshots of a repository."""
    listed = context.client.call("snapshot.list", repository=repository)
    rows = [
        [s["name"] or "-", (s["volume"] or {}).get("name") or "-", s["state"], s["created"] or "-",
         format_size(s["size_bytes"] or 0), format_size(s["uploaded_bytes"] or 0)]
        for s in listed["snapshots"]
    ]  # fmt: skip
    context.output.table(listed, ["NAME", "VOLUME", "STATE", "CUT", "SIZE", "UPLOADED"], rows)


@snapshot.command()
@click.argument("name")
@_repository
@pass_context
def show(context: Context, name: str, repository: str | None) -> None:
    """Show one snapshot, by name, id or handle; one in the making with its progress and its buffer."""
    shown = context.client.call("snapshot.show", snapshot=name, repository=repository)
    volume = shown["volume"]
    pairs = [
        ("name", shown["name"] or "-"),
        ("handle", shown["handle"]),
        ("volume", f"{volume['name']} ({volume['id']})" if volume else "-"),
        ("state", shown["state"]),
        ("cut", shown["created"] or "-"),
        ("size", format_size(shown["size_bytes"])),
        ("parent", shown["parent"] or "-"),
        ("uploaded", f"{format_size(shown['uploaded_bytes'])} in {shown['requests']} requests"),
    ]
    progress, session = shown.get("progress"), shown.get("session")
    if progress:
        percent = 100 * progress["bytes_done"] // max(1, progress["bytes_total"])
        pairs.append(("progress", f"{percent} %, {format_size(progress['bytes_total'] - progress['bytes_done'])} left"))
    if session:
        pairs += [
            ("pre-images", f"{session['preimages']} ({format_size(session['preimage_bytes'])})"),
            ("buffer", f"{format_size(session['buffer_bytes'])} of {format_size(session['budget_bytes'])}, "
                       f"peak {format_size(session['buffer_peak_bytes'])}"),
            ("stage", session["stage"]),
            ("read", f"{format_size(session['swept_bytes'])}: what its parent was not known to have"),
            ("spilled", f"{session['spilled']} pre-images, {format_size(session['spill_bytes'])} of the file in use"),
            ("throttled", f"{session['throttled']} writes, {session['throttle_seconds']:.2f} s in all"),
            ("retries", str(session["retries"])),
        ]  # fmt: skip
    if shown["error"]:
        error = StillframeError.from_message(shown["error"])
        pairs.append(("error", f"{error.message} ({error.hint})" if error.hint else error.message))
    context.output.fields(shown, pairs)


def _follow(context: Context, job: str, what: str) -> dict[str, Any]:
    with context.output.progress(what) as meter:
        return context.client.follow_job(job, lambda p: meter(p.get("bytes_done", 0), p.get("bytes_total", 0)))


@snapshot.command()
@click.argument("name")
@_repository
@pass_context
def verify(context: Context, name: str, repository: str | None) -> None:
    """Read and check every byte of a snapshot, without restoring it."""
    job = context.client.call("snapshot.verify", snapshot=name, repository=repository)["job"]
    result = _follow(context, job, f"verify {name}")
    context.output.result(result, f"{name} is whole: {result['chunks']} chunks, {format_size(result['bytes'])} read")


@snapshot.command()
@click.argument("name")
@click.argument("volume")
@_repository
@click.option("--size", type=SIZE, help="Size of the new volume [default: the snapshot's].")
@click.option("--thin", is_flag=True, help="Take disk space only for what the snapshot holds.")
@pass_context
def restore(context: Context, name: str, volume: str, repository: str | None, size: int | None, thin: bool) -> None:
    """Make the new volume VOLUME of the snapshot NAME."""
    started = context.client.call(
        "snapshot.restore", snapshot=name, repository=repository, volume=volume, size_bytes=size,
        provisioning="thin" if thin else "thick",
    )  # fmt: skip
    _follow(context, started["job"], f"restore {name}")
    shown = context.client.call("volume.show", name=volume)
    context.output.result(shown, f"restored {name} to {volume}, {format_size(shown['size_bytes'])}")


@snapshot.command()
@click.argument("name")
@_repository
@pass_context
def delete(context: Context, name: str, repository: str | None) -> None:
    """Delete a snapshot; one in the making is aborted, for good."""
    context.client.call("snapshot.delete", snapshot=name, repository=repository)
    context.output.result({"deleted": name}, f"deleted {name}")


snapshot.add_command(prune)
