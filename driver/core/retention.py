"""Which snapshots of a volume to keep: the last ones, and the last of each hour, day, week or month. Pure.

Hours, days, weeks (ISO 8601: from Monday on) and months are those of UTC. Of each period that has a snapshot the newest one
counts; as many periods are kept as the rule says, the newest first. What any rule keeps, is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from driver.core.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Rules:
    """How many of each to keep; 0 is none. Raises InvalidArgument if nothing at all would be kept."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def __post_init__(self) -> None:
        counts = (self.last, self.hourly, self.daily, self.weekly, self.monthly)
        if min(counts) < 0:
            raise InvalidArgument("a number of snapshots to keep is negative", "use 0 or more")
        if not any(counts):
            raise InvalidArgument("nothing says which snapshots to keep", "give at least one of the --keep options")


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot and the time of its cut, with a time zone."""

    id: str
    created: datetime


_PERIODS: Final[Mapping[str, Callable[[datetime], tuple[Any, ...]]]] = {
    "hourly": lambda at: (at.date(), at.hour),
    "daily": lambda at: (at.date(),),
    "weekly": lambda at: tuple(at.isocalendar()[:2]),
    "monthly": lambda at: (at.year, at.month),
}


def keep(taken: Iterable[Taken], rules: Rules) -> dict[str, tuple[str, ...]]:
    """The ids of those to keep, and by which rules. All others may go."""
    newest_first = sorted(taken, key=lambda item: (item.created, item.id), reverse=True)
    kept: dict[str, list[str]] = {}
    for item in newest_first[: rules.last]:
        kept.setdefault(item.id, []).append("last")
    for rule, period in _PERIODS.items():
        newest: dict[tuple[Any, ...], str] = {}
        for item in newest_first:
            newest.setdefault(period(item.created.astimezone(UTC)), item.id)
        for id_ in list(newest.values())[: getattr(rules, rule)]:
            kept.setdefault(id_, []).append(rule)
    return {id_: tuple(why) for id_, why in kept.items()}
