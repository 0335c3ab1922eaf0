"""What Helm prints at the end of an installation."""

from __future__ import annotations

import re

from tests.chart.rendered import CHART, ROOT, run


def test_the_command_that_adds_a_repository_names_a_chart_that_helm_finds() -> None:
    done = run("install", "stillframe", str(CHART), "--namespace", "storage", "--dry-run=client", values={})
    assert done.returncode == 0, done.stderr
    (chart,) = re.findall(r"^ *helm upgrade stillframe (\S+) -n storage", done.stdout, re.MULTILINE)
    assert (ROOT / chart / "Chart.yaml").is_file()
