"""Kafka's answers to producers take four seconds: longer than the leaders' connections may idle. What is sent gets through
all the same, and once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load
from tests.faults.brokers import slow_answers
from tests.faults.scenario import Scenario
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

ANSWER_SECONDS = 4.0
PATIENCE = 120.0
KEYS = 3
LEADERS = {"keys-worker": "keyledger/keys", "usage-worker": "keyledger/usage"}


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_slow_broker(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    with slow_answers(stack) as delay:
        for name in LEADERS:
            # Who was connected before Kafka's restart goes on to its former address.
            stack.wait_restarted(name, stack.kill(name), 120)
        stack.wait_ready(300)
        served = [len(load.seen) for load in loads]
        eventually_sync(lambda: all(len(load.seen) > n for load, n in zip(loads, served, strict=True)), 60)
        interrupted = {name: _interruptions(stack, name) for name in LEADERS}
        delay.seconds = ANSWER_SECONDS
        # Through the relay to the edge, and back through the refusal.
        keys = [owner.create_key(f"slow {number}", limits=UNLIMITED) for number in range(KEYS)]
        _wait_answered(owner, keys, 200)
        for key in keys:
            assert owner.send("DELETE", f"/api/v1/api-keys/{key['id']}").is_success
            scenario.faults += 1
        _wait_answered(owner, keys, 401)
        # Through the agent into usage, whose publisher tells keys.
        counted = _counted(owner, loads[0])
        eventually_sync(lambda: _counted(owner, loads[0]) > counted, PATIENCE, 1.0)
        assert all(delay.ended[name] >= 2 for name in LEADERS.values()), delay.ended
        assert {name: _interruptions(stack, name) for name in LEADERS} == interrupted, "nobody begins again"
    stack.wait_ready(300)
    assert [load.failures for load in loads] == [0] * len(loads), "known keys are served all the time"
    scenario.account(owner, loads, faults=KEYS, answers=500)


def _wait_answered(owner: Client, keys: Sequence[dict[str, Any]], status: int) -> None:
    for key in keys:
        with owner.with_key(key["key"]) as client:
            eventually_sync(lambda client=client: client.get("/echo/slow").status_code == status, PATIENCE, 0.2)


def _interruptions(stack: LocalStack, name: str) -> int:
    return stack.logs(name).count("leader interrupted")


def _counted(owner: Client, load: Load) -> int:
    """What the list of keys says of the load's key."""
    keys = owner.get("/api/v1/api-keys?limit=100").json()["api_keys"]
    return next(int(key["usage_count"]) for key in keys if key["id"] == load.key["id"])
