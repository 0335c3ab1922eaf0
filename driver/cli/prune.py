"""`stillframe snapshot prune`: delete a volume's old snapshots, by rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from driver.cli.context import Context, pass_context
from driver.core.errors import FailedPrecondition, NotFound
from driver.core.ids import is_id
from driver.core.retention import Rules, Taken, keep

_COUNT = click.IntRange(0)


@click.command()
@click.argument("volume")
@click.option("--repository", help="A name from repositories.toml [default: the default one].")
@click.option("--keep-last", type=_COUNT, default=0, metavar="N", help="Keep the N newest.")
@click.option("--keep-hourly", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of the N last hours.")
@click.option("--keep-daily", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of the N last days.")
@click.option("--keep-weekly", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of the N last weeks.")
@click.option("--keep-monthly", type=_COUNT, default=0, metavar="N", help="Keep the newest of each of the N last months.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be deleted.")
@pass_context
def prune(
    context: Context, volume: str, repository: str | None, keep_last: int, keep_hourly: int, keep_daily: int,
    keep_weekly: int, keep_monthly: int, dry_run: bool,
) -> None:  # fmt: skip
    """Delete the complete snapshots of VOLUME, a name or an id, but for those that a --keep option keeps.

    Hours, days, weeks (from Monday on) and months are those of UTC. One without a snapshot does not count.
    """
    rules = Rules(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly)
    listed = context.client.call("snapshot.list", repository=repository)["snapshots"]
    found = of_volume(listed, volume, context.client.call("volume.list")["volumes"])
    why = keep([Taken(item["id"], datetime.fromisoformat(item["created"])) for item in found], rules)
    rows = []
    for item in found:
        if item["id"] in why:
            rows.append([item["name"], item["created"], f"kept ({', '.join(why[item['id']])})"])
            continue
        if not dry_run:
            context.client.call("snapshot.delete", snapshot=item["handle"])
        rows.append([item["name"], item["created"], "would be deleted" if dry_run else "deleted"])
    shown = [
        {"id": item["id"], "name": item["name"], "created": item["created"], "kept_by": list(why.get(item["id"], ()))}
        for item in found
    ]
    context.output.table({"snapshots": shown, "dry_run": dry_run}, ["NAME", "CUT", "OUTCOME"], rows)


def of_volume(
    snapshots: Sequence[dict[str, Any]], volume: str, volumes: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The complete snapshots of the volume that a user means, oldest first: this node's of that name or id, else the only
    one that has snapshots. Pure. Raises NotFound, FailedPrecondition for a name that several volumes had."""
    complete = [item for item in snapshots if item["state"] == "committed"]
    ids = {item["id"] for item in volumes if item["name"] == volume}
    if not ids:
        ids = {item["volume"]["id"] for item in complete if volume in (item["volume"]["name"], item["volume"]["id"])}
    if len(ids) > 1:
        raise FailedPrecondition(
            f"{len(ids)} volumes of the name {volume!r} have snapshots there: {', '.join(sorted(ids))}",
            "name the one that you mean by its id",
        )
    found = [item for item in complete if item["volume"]["id"] in ids]
    if not found and not ids and not is_id(volume):
        raise NotFound(f"there is no volume {volume!r}, and no complete snapshot of one", "see: stillframe snapshot list")
    return sorted(found, key=lambda item: (item["created"], item["id"]))
