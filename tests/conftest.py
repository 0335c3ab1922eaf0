"""What all tests share: under CI a skipped test is a failure, unless it is listed here with its reason; no test asserts a
time, so hypothesis is told not to either."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("stillframe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stillframe")

MAY_BE_SKIPPED: frozenset[str] = frozenset(
    {
        # where the machine that tests does not let its containers make control groups
        "tests/faults/test_start_and_stop.py::test_a_transfer_process_that_eats_memory_is_killed_alone",
    }
)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and item.nodeid not in MAY_BE_SKIPPED:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
