"""Which snapshots are kept, against plain words of the same rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.core.errors import InvalidArgument
from driver.core.retention import Rules, Taken, keep

counts = st.integers(0, 6)
rules = st.builds(Rules, counts, counts, counts, counts, st.integers(1, 6))
times = st.datetimes(datetime(2025, 12, 1), datetime(2026, 2, 10), timezones=st.sampled_from(
    [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))]
))  # fmt: skip
snapshots = st.lists(times, max_size=60).map(
    lambda found: [Taken(f"s{number:02}", at) for number, at in enumerate(found)]
)  # fmt: skip
FORMATS = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m"}


@given(snapshots, rules)
def test_each_rule_keeps_the_newest_of_its_newest_periods(taken: list[Taken], given_rules: Rules) -> None:
    kept = keep(taken, given_rules)
    ordered = sorted(taken, key=lambda item: (item.created, item.id))
    for rule, form in FORMATS.items():
        newest = {item.created.astimezone(UTC).strftime(form): item.id for item in ordered}  # later ones replace
        count = getattr(given_rules, rule)
        expected = {newest[period] for period in sorted(newest)[-count:]} if count else set()
        assert {id_ for id_, why in kept.items() if rule in why} == expected
    last = {item.id for item in ordered[-given_rules.last :]} if given_rules.last else set()
    assert {id_ for id_, why in kept.items() if "last" in why} == last
    assert all(kept.values())
    assert not taken or ordered[-1].id in kept


@given(snapshots, rules)
def test_again_removes_nothing_more_and_order_does_not_matter(taken: list[Taken], given_rules: Rules) -> None:
    kept = keep(taken, given_rules)
    assert keep([item for item in taken if item.id in kept], given_rules) == kept
    assert keep(taken[::-1], given_rules) == kept


@given(snapshots, rules, st.sampled_from(["last", *FORMATS]))
def test_a_higher_number_never_removes_more(taken: list[Taken], given_rules: Rules, rule: str) -> None:
    more = Rules(**{name: getattr(given_rules, name) + (name == rule) for name in ("last", *FORMATS)})
    assert keep(taken, given_rules).keys() <= keep(taken, more).keys()


def test_rules_that_keep_nothing_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="which snapshots to keep"):
        Rules()
    with pytest.raises(InvalidArgument, match="negative"):
        Rules(last=1, daily=-1)


def test_a_week_of_every_hour() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    taken = [Taken(f"{hour:03}", begin + timedelta(hours=hour)) for hour in range(7 * 24)]
    kept = keep(taken, Rules(last=2, hourly=3, daily=3, weekly=2, monthly=12))
    assert kept == {
        "167": ("last", "hourly", "daily", "weekly", "monthly"), "166": ("last", "hourly"), "165": ("hourly",),
        "143": ("daily",), "119": ("daily",), "095": ("weekly",),
    }  # fmt: skip
