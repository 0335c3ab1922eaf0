"""`stillframe repository`: list, gc, check, stats."""

from __future__ import annotations

from typing import Any

import click

from driver.cli.context import Context, pass_context
from driver.core.errors import DataCorrupt
from driver.core.sizes import format_size

_repository = click.option("--repository", help="A name from repositories.toml [default: the default one].")


@click.group()
def repository() -> None:
    """Repositories: where snapshots lie."""


def _job(context: Context, call: str, **arguments: Any) -> dict[str, Any]:
    job = context.client.call(call, **arguments)["job"]
    return context.client.follow_job(job, lambda progress: None)


@repository.command(name="list")
@pass_context
def list_(context: Context) -> None:
    """List the repositories that the engine knows."""
    known = context.client.call("engine.info")["repositories"]
    rows = [[item["name"], item["url"], "default" if item["default"] else ""] for item in known]
    context.output.table({"repositories": known}, ["NAME", "URL", ""], rows)


@repository.command()
@_repository
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@pass_context
def gc(context: Context, repository: str | None, dry_run: bool) -> None:
    """Remove what no snapshot needs. Objects of deleted snapshots are kept for a day after the deletion.

    Safe while snapshots are taken, from any node. Refused where the store does not honour conditional PUTs.
    """
    done = _job(context, "repository.gc", repository=repository, dry_run=dry_run)
    verb = "would be removed" if dry_run else "removed"
    text = f"{done['removed']} objects {verb}, {format_size(done['freed_bytes'])}; {format_size(done['kept_bytes'])} stay"
    if done["fenced"]:
        text += f"; {done['fenced']} sessions that nobody has heard of for a day can no longer commit"
    context.output.result(done, text)


@repository.command()
@_repository
@pass_context
def check(context: Context, repository: str | None) -> None:
    """Look whether every object that a snapshot needs is there, in its size. `snapshot verify` reads the bytes, too."""
    found = _job(context, "repository.check", repository=repository)
    if found["hurt"] and not context.output.is_json:
        for snapshot, wrong in sorted(found["hurt"].items()):
            for line in wrong:
                click.echo(f"{snapshot}: {line}")
    if found["hurt"]:
        raise DataCorrupt(
            f"{len(found['hurt'])} of {found['snapshots']} snapshots are hurt: {', '.join(sorted(found['hurt']))}",
            "bring the objects back from the bucket's versions, or delete these snapshots; look at its lifecycle rules",
        )
    text = f"all {found['snapshots']} snapshots are whole; {found['objects']} objects, {found['orphans']} that none needs"
    context.output.result(found, text)


@repository.command()
@_repository
@pass_context
def stats(context: Context, repository: str | None) -> None:
    """Show how much lies in a repository, by lineage: a volume and what was restored from its snapshots."""
    found = _job(context, "repository.stats", repository=repository)
    rows = [
        [lineage, str(of["packs"]), str(of["regions"]), format_size(of["bytes"])]
        for lineage, of in sorted(found["lineages"].items())
    ]
    totals = [str(sum(of[kind] for of in found["lineages"].values())) for kind in ("packs", "regions")]
    rows.append(["all", *totals, format_size(found["bytes"])])
    context.output.table(found, ["LINEAGE", "PACKS", "INDEXES", "SIZE"], rows)
