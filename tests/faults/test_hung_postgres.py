"""PostgreSQL hangs (all of its backends are stopped, the kernel goes on acknowledging) under load: whoever needs it says that it
is not ready, all are ready again when it answers, and every counter is right.
"""

from __future__ import annotations

import pytest

from tests.e2e.client import Client
from tests.e2e.load import Load
from tests.faults.scenario import Scenario
from tests.support.eventually import eventually_sync
from tests.support.stack import Stack

TIMES = 2
WORKERS = ("usage-worker", "stats-worker")
NOTICED_SECONDS = 120
"""Fifteen seconds without progress, and how often the supervisor looks, on a busy machine."""


@pytest.mark.timeout(1200)
def test_hung_postgresql(stack: Stack, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    for _ in range(TIMES):
        for load in loads:
            served = len(load.seen)
            eventually_sync(lambda load=load, served=served: len(load.seen) > served + 50, 120)
        stack.pause("postgres")
        try:
            for name in WORKERS:
                eventually_sync(lambda name=name: not stack.process(name)["ready"], NOTICED_SECONDS)
        finally:
            stack.resume("postgres")
        scenario.faults += 1
        stack.wait_ready(300)
    assert [load.failures for load in loads] == [0] * len(loads), "known keys are served all the time"
    scenario.account(owner, loads, faults=TIMES, answers=500)
