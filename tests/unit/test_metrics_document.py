"""docs/metrics.md has every metric of the code and of the chart, and no other; tests/node and tests/controller compare what
is served."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.metrics import TEXT, documented

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"stillframe_[a-z_]+")


def constants() -> Iterator[str]:
    """Every text in the code that is a metric's name; f-strings for reads and writes are the two histograms."""
    for path in (ROOT / "driver").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                yield node.value
    yield from (f"stillframe_volume_{side}_duration_seconds" for side in ("read", "write"))


def base(name: str) -> str:
    """Without what Prometheus puts after counters and histograms."""
    known = documented()
    for suffix in ("", "_total", "_bucket", "_count", "_sum"):
        if name.endswith(suffix) and name.removesuffix(suffix) in known:
            return name.removesuffix(suffix)
    return name


def test_the_page_has_the_code_s_metrics() -> None:
    ours = {name for name in constants() if not name.endswith("_")}
    assert ours == documented().keys()


def test_what_the_chart_and_the_page_ask_for_is_there() -> None:
    files = (ROOT / "charts/stillframe/files" / name for name in ("dashboard.json", "alerts.yaml"))
    for text in (TEXT, *(file.read_text() for file in files)):
        asked = {base(name) for name in NAME.findall(text)}
        assert asked <= documented().keys()
