"""The seed of a run, a stack for each worker, and the table at the end, also when something failed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import loads, owner, stack, upstream, without_containers
from tests.faults.scenario import SEED, Scenario

__all__ = ["loads", "owner", "stack", "upstream", "without_containers"]

# Here, so that the workers of a run inherit it.
os.environ[SEED] = os.environ.get(SEED) or secrets.token_hex(4)

_COLUMNS = ("scenario", "faults", "answers", "rows", "unanswered", "seconds", "result")


def pytest_report_header() -> str:
    return f"{SEED}={os.environ[SEED]}"


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """The row of the test that asks for it."""
    running = Scenario(request.node.name.removeprefix("test_"))
    yield running
    request.node.user_properties.append(("scenario", running.row()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    failed = {report.nodeid for report in reports if report.failed}
    rows = [
        (row["name"], row["faults"], row["answers"], row["rows"], row["unanswered"], row["seconds"], result)
        for report in reports
        if report.when == "teardown"
        for name, row in report.user_properties
        if name == "scenario"
        for result in ["FAILED" if report.nodeid in failed else "passed"]
    ]
    terminalreporter.section(f"faults, {SEED}={os.environ[SEED]}")
    width = max([len(str(row[0])) for row in rows], default=8)
    for row in [_COLUMNS, *rows]:
        terminalreporter.write_line(
            f"{str(row[0]).replace('_', ' '):{width}} " + " ".join(f"{each!s:>10}" for each in row[1:])
        )
