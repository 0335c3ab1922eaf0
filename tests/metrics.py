"""What docs/metrics.md says of the metrics, for tests that compare it with what is served."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

TEXT = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
_ROW = re.compile(r"^\| `(stillframe_[a-z_]+)` \| (gauge|counter|histogram) \| ([a-z, ]*) ?\|", re.MULTILINE)


@dataclass(frozen=True)
class Described:
    """A metric: its type and labels."""

    kind: str
    labels: frozenset[str]


def documented() -> dict[str, Described]:
    return {name: Described(kind, frozenset(re.findall(r"[a-z]+", labels))) for name, kind, labels in _ROW.findall(TEXT)}


def check_served(text: str) -> set[str]:
    """The names of our metrics in a scrape, each as documented: kind, and labels wherever it has a sample."""
    known = documented()
    found = set()
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("stillframe_") or family.name.endswith("_created"):
            continue
        assert family.name in known, f"docs/metrics.md has no {family.name}"
        assert family.type == known[family.name].kind, family.name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == known[family.name].labels, sample
        found.add(family.name)
    return found
