"""Every kind of process is killed with SIGKILL again and again, each at its own instants, under load; afterwards each
answer that a client saw is counted once.

Each kind has a schedule of its own, so several are down at once: of the faults that lose data most take more than one
event. A kill may hit a process that is only starting.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.e2e.client import Client
from tests.e2e.load import Load
from tests.faults.scenario import Scenario
from tests.support.stack import KINDS, LocalStack

KILLS = 20
LONGEST_PAUSE = 20.0
"""Seconds that a process lives at most before it is killed again."""


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_kills(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    for load in loads:
        load.paths = ("/echo/a", "/api/v1/tickets", "/echo/b", "/nobody", "/api/v1/dashboard/stats")
    failed = threading.Event()

    def kill_again_and_again(kind: str, random: Random) -> int:
        before = 0
        for number in range(KILLS):
            if failed.wait(random.uniform(0, LONGEST_PAUSE)):
                return number
            before = stack.kill_next(kind, before)
        return KILLS

    with ThreadPoolExecutor(len(KINDS)) as pool:
        killers = [pool.submit(kill_again_and_again, kind, scenario.random(kind)) for kind in KINDS]
        try:
            for killer in killers:
                scenario.faults += killer.result()
        finally:
            failed.set()
    stack.wait_ready(300)
    scenario.account(owner, loads, faults=KILLS * len(KINDS), answers=10 * KILLS * len(KINDS))
    after = owner.create_key("after")
    with owner.with_key(after["key"]) as client:
        assert client.get("/echo/after").status_code == 200
    owner.settled_usage(after["id"], 1)
