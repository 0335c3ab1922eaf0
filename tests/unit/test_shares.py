"""How the node's cap is divided: fair to everybody, and never beyond the cap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from driver.engine.shares import Claim, fair, grants


def claims_of(bounds: list[tuple[int, int, int]]) -> list[Claim]:
    return [Claim(least, least + more, held) for least, more, held in bounds]


CAP = st.integers(0, 2000)
CLAIMS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 400), st.integers(0, 400)), max_size=8).map(claims_of)


def test_equal_parts_but_for_who_needs_less() -> None:
    assert fair(100, [Claim(0, 10), Claim(0, 100), Claim(0, 100)]) == [10, 45, 45]
    assert fair(100, [Claim(60, 100), Claim(0, 100)]) == [60, 40]
    assert fair(100, [Claim(0, 20), Claim(0, 30)]) == [20, 30]


def test_nothing_is_granted_that_somebody_still_holds() -> None:
    assert grants(100, [Claim(0, 100, held=90), Claim(0, 100)]) == [50, 10]
    assert grants(100, [Claim(0, 100, held=50), Claim(0, 100, held=10)]) == [50, 50]


@given(CAP, CLAIMS)
def test_parts_are_within_bounds_and_fair(cap: int, claims: list[Claim]) -> None:
    parts = fair(cap, claims)
    assert sum(parts) <= max(cap, sum(claim.least for claim in claims))
    assert all(claim.least <= part <= claim.most for part, claim in zip(parts, claims, strict=True))
    highest = max((part for part, claim in zip(parts, claims, strict=True) if part > claim.least), default=0)
    for part, claim in zip(parts, claims, strict=True):  # who has less can use no more; 1 is a rest
        assert part == claim.most or part >= highest - 1
    left = cap - sum(parts)
    if any(part < claim.most for part, claim in zip(parts, claims, strict=True)):
        assert left < len(claims)


@given(CAP, CLAIMS)
def test_grants_with_what_is_held_stay_below_the_cap(cap: int, claims: list[Claim]) -> None:
    granted = grants(cap, claims)
    held = sum(claim.held for claim in claims)
    taken = sum(max(share, claim.held) for share, claim in zip(granted, claims, strict=True))
    assert taken <= max(cap, held)
    assert all(share <= part for share, part in zip(granted, fair(cap, claims), strict=True))
