"""`stillframe doctor`: what a host or a cluster lacks, a line a check, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from driver.cli.context import Context, pass_context
from driver.cli.doctor_checks import GROUPS, Check, Grade, checks
from driver.cli.doctor_host import gather
from driver.cli.output import Output

HAS_PROBLEMS: Final = 20
"""Exit code; that of no error, which `exitcodes` has."""


def report(output: Output, found: Sequence[Check]) -> None:
    """Show the checks; exit with HAS_PROBLEMS if one is a problem."""
    count = {grade: sum(1 for check in found if check.grade is grade) for grade in Grade}
    if output.is_json:
        shown: list[dict[str, Any]] = [
            {"check": check.name, "grade": check.grade.value, "found": check.found, "fix": check.fix} for check in found
        ]
        output.result({"checks": shown, **{grade.value: count[grade] for grade in Grade}}, "")
    for check in found:
        output.line(f"{check.grade.value:8} {check.name}: {check.found}{f'; {check.fix}' if check.fix else ''}")
    unseen = f", {count[Grade.UNSEEN]} not looked at" if count[Grade.UNSEEN] else ""
    output.line(f"{count[Grade.OK]} ok, {count[Grade.WARNING]} to look at, {count[Grade.PROBLEM]} to mend{unseen}")
    if count[Grade.PROBLEM]:
        sys.exit(HAS_PROBLEMS)


@click.command()
@click.option("--only", "groups", type=click.Choice(list(GROUPS)), multiple=True,
              help="Check only this; may be given several times [default: all].")  # fmt: skip
@pass_context
def doctor(context: Context, groups: tuple[str, ...]) -> None:
    """Check this host, or the container that this is: kernel, programs, state folder, engine, repositories.

    Exits with 20 if something must be mended. As root: it tries out a loop device and a FUSE mount.
    """
    wanted = groups or tuple(GROUPS)
    report(context.output, checks(gather(context.client, wanted), wanted))
