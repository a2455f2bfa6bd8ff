"""Two usage workers share the partitions under load, and one after the other leaves, dies, or sleeps past its session."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.e2e.client import Client
from tests.e2e.load import Load
from tests.faults.scenario import Scenario
from tests.faults.twin import Twin, readiness, settings_of
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

ASLEEP = 12.0
"""Longer than a consumer's session (10 s): its partitions are another's by then."""


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_rebalance(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    with Twin(stack, "usage-worker", tmp_path / "worker.log") as twin:

        def shared() -> bool:
            own = readiness(settings_of(stack.process("usage-worker")["pid"])["KEYLEDGER_INTERNAL_PORT"])
            return all(_partitions(checks) for checks in (own["checks"], twin.checks()))

        ways = [("dies", "own"), ("dies", "twin"), ("sleeps", "own"), ("sleeps", "twin"), ("ends", "twin")]
        scenario.random().shuffle(ways)
        twin.start()
        for way, which in ways:
            eventually_sync(shared, 120)
            seen = sum(len(load.seen) for load in loads)
            eventually_sync(lambda seen=seen: sum(len(load.seen) for load in loads) > seen + 30, 60)
            if way == "sleeps":
                _signal(stack, twin, which, signal.SIGSTOP)
                time.sleep(ASLEEP)
                _signal(stack, twin, which, signal.SIGCONT)
            elif which == "own":
                stack.kill_next("usage-worker", 0)
            else:
                twin.end(signal.SIGKILL if way == "dies" else signal.SIGTERM)
                twin.start()
            scenario.faults += 1
        eventually_sync(shared, 120)
        scenario.account(owner, loads, faults=len(ways), answers=500)
    stack.wait_ready(300)


def _signal(stack: LocalStack, twin: Twin, which: str, number: signal.Signals) -> None:
    if which == "own":
        stack.kill("usage-worker", number)
    else:
        twin.send(number)


def _partitions(checks: dict[str, dict[str, str]]) -> int:
    """How many partitions a worker has, as its readiness says; 0 while it is not ready."""
    count, _, rest = checks["consumer"]["detail"].partition(" ")
    return int(count) if rest == "partitions" else 0
