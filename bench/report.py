"""The results of a run: medians of the rounds with their spread, ratios with their goals; as JSON and as a table."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

AT_LEAST: Final = "≥"
AT_MOST: Final = "≤"


@dataclass(slots=True)
class Case:
    """What one subject did; a value a round."""

    name: str
    subject: str
    unit: str
    values: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Ratio:
    """What a goal is set for; a value a round. `counts` is False once a round was not what the goal speaks of."""

    name: str
    relation: str
    bound: float
    unit: str = ""
    values: list[float] = field(default_factory=list)
    counts: bool = True

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def goal(self) -> str:
        return f"{self.relation} {self.bound:g}{f' {self.unit}' if self.unit else ''}"

    @property
    def met(self) -> bool:
        within = self.value >= self.bound if self.relation == AT_LEAST else self.value <= self.bound
        return self.counts and within


@dataclass(slots=True)
class Results:
    """Everything measured so far, in the order of its first measurement."""

    cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def case(self, name: str, subject: str, value: float, unit: str) -> None:
        """One round's value of a case."""
        self.cases.setdefault((name, subject), Case(name, subject, unit)).values.append(value)

    def ratio(self, name: str, value: float, relation: str, bound: float, *, unit: str = "", counts: bool = True) -> None:
        """One round's value of a ratio, both sides of which were measured in that round."""
        ratio = self.ratios.setdefault(name, Ratio(name, relation, bound, unit))
        ratio.values.append(value)
        ratio.counts = ratio.counts and counts

    def as_json(self) -> dict[str, Any]:
        return {
            "cases": [
                {
                    "name": case.name, "subject": case.subject, "value": _rounded(statistics.median(case.values)),
                    "unit": case.unit, "spread": [_rounded(min(case.values)), _rounded(max(case.values))],
                }
                for case in self.cases.values()
            ],
            "ratios": [
                {"name": ratio.name, "value": _rounded(ratio.value), "goal": ratio.goal, "met": ratio.met}
                for ratio in self.ratios.values()
            ],
        }  # fmt: skip

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n")

    def _subjects(self, name: str) -> list[str]:
        return [subject for other, subject in self.cases if other == name]

    def _groups(self) -> list[list[str]]:
        """The sets of subjects that have cases in common: a table each."""
        found: list[list[str]] = []
        for name, _ in self.cases:
            if self._subjects(name) not in found:
                found.append(self._subjects(name))
        return found

    def show(self, console: Console) -> None:
        for subjects in self._groups():
            cases = Table("case", "unit", title="medians of the rounds (lowest to highest)", title_justify="left")
            for subject in subjects:
                cases.add_column(subject, justify="right")
            for name in dict.fromkeys(name for name, subject in self.cases if self._subjects(name) == subjects):
                found = [self.cases[name, subject] for subject in subjects]
                cases.add_row(name, found[0].unit, *(_spread(case.values) for case in found))
            console.print(cases)
        ratios = Table("goal for", title="goals", title_justify="left")
        for heading in ("median", "goal"):
            ratios.add_column(heading, justify="right")
        ratios.add_column("met")
        for ratio in self.ratios.values():
            verdict = "yes" if ratio.met else "no" if ratio.counts else "no: does not count"
            ratios.add_row(ratio.name, _spread(ratio.values), ratio.goal, verdict)
        console.print(ratios)
        for error in self.errors:
            console.print(f"error: {error}", markup=False)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _spread(values: list[float]) -> str:
    median = _text(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({_text(min(values))} to {_text(max(values))})"
