"""`stillframe repository`: list, gc, check, stats."""

from __future__ import annotations

from typing import Any, Final

import click

from driver.cli.context import Context, pass_context
from driver.core.errors import DataCorrupt
from driver.core.sizes import format_size

_SHOWN_MAX: Final = 20
_repository = click.option("--repository", help="A name from repositories.toml [default: the default one].")


@click.group()
def repository() -> None:
    """Repositories: where snapshots lie."""


def _job(context: Context, call: str, **arguments: Any) -> dict[str, Any]:
    job = context.client.call(call, **arguments)["job"]
    return context.client.follow_job(job, lambda progress: None)


def counted(count: int, what: str) -> str:
    """1 object, 2 objects."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _amount(of: dict[str, Any]) -> str:
    return f"{counted(of['objects'], 'object')} with {format_size(of['bytes'])}"


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
    """Remove what no snapshot needs. What a deleted snapshot needed stays for a day after the deletion.

    Safe while snapshots are taken, from any node. Refused where the store ignores conditional PUTs.
    """
    done = _job(context, "repository.gc", repository=repository, dry_run=dry_run)
    would = "would be " if dry_run else ""
    text = (
        f"{counted(done['removed'], 'object')} {would}removed, {format_size(done['freed_bytes'])} freed; "
        f"{_amount({'objects': done['kept_objects'], 'bytes': done['kept_bytes']})} stay"
    )
    if done["half_written"]:
        text += f"; {counted(done['half_written'], 'half-written file')} removed"
    if done["fenced"]:
        text += f"; {counted(done['fenced'], 'session')} that nobody has heard of for a day {would}kept from committing"
    context.output.result(done, text)


@repository.command()
@_repository
@pass_context
def check(context: Context, repository: str | None) -> None:
    """Look whether every object that a snapshot needs is there, in its size. `snapshot verify` reads the bytes, too."""
    found = _job(context, "repository.check", repository=repository)
    text = f"{counted(found['snapshots'], 'snapshot')}, {_amount(found)}"
    orphans, unsettled = found["orphans"], found["unsettled"]
    if orphans["objects"]:
        text += f"\n{_amount(orphans)} that no snapshot needs: `repository gc` removes them when they are a day old"
    if unsettled["objects"]:
        text += f"\n{_amount(unsettled)} that no snapshot needs yet: one is being made"
    for key in found["strange"][:_SHOWN_MAX]:
        text += f"\n{key} is none of ours"
    if found["hurt"]:
        context.output.result(found, text)
        _tell_hurt(context, found["hurt"])
        names = ", ".join(sorted(item["name"] or item["id"] for item in found["hurt"]))
        raise DataCorrupt(
            f"{counted(len(found['hurt']), 'snapshot')} of {found['snapshots']} hurt: {names}",
            "bring the objects back from the bucket's versions, or delete these snapshots and take the next ones with "
            "--full; look at its lifecycle rules",
        )
    context.output.result(found, f"{text}\nevery object that a snapshot needs is there")


def _tell_hurt(context: Context, hurt: list[dict[str, Any]]) -> None:
    for item in hurt:
        of = f" of volume {item['volume']['name']}" if item["volume"] else ""
        context.output.line(f"{item['name'] or item['id']}{of}:")
        for line in item["wrong"][:_SHOWN_MAX]:
            context.output.line(f"    {line}")
        if len(item["wrong"]) > _SHOWN_MAX:
            context.output.line(f"    and {len(item['wrong']) - _SHOWN_MAX} more (all of them: --output json)")


@repository.command()
@_repository
@pass_context
def stats(context: Context, repository: str | None) -> None:
    """Show how much lies in a repository, by lineage: a volume and what was restored from its snapshots."""
    found = _job(context, "repository.stats", repository=repository)
    rows = [
        [lineage, ", ".join(of["volumes"]) or "-", str(of["snapshots"]), str(of["packs"]), str(of["regions"]),
         format_size(of["bytes"])]
        for lineage, of in sorted(found["lineages"].items())
    ]  # fmt: skip
    totals = [str(sum(of[kind] for of in found["lineages"].values())) for kind in ("snapshots", "packs", "regions")]
    rows.append(["all", "", *totals, format_size(found["bytes"])])
    context.output.table(found, ["LINEAGE", "VOLUMES", "SNAPSHOTS", "PACKS", "INDEXES", "SIZE"], rows)
