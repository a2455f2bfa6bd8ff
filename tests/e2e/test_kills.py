"""Every kind of process is killed with SIGKILL under load; afterwards each answer that a client saw is counted once.

Several at the same instant: of the faults that lose data most take more than one event. The order is drawn, by a fixed
seed for each round.
"""

from __future__ import annotations

import random

import pytest

from tests.e2e.client import Client
from tests.e2e.load import Load, assert_counted_once
from tests.support.stack import LocalStack

KINDS = (
    "edge-serving",
    "edge-agent",
    "keys-worker",
    "tickets-worker",
    "usage-worker",
    "stats-worker",
    "keys-api",
    "tickets-api",
    "usage-api",
    "stats-api",
    "edge",
    "kafka",
    "postgres",
)
ROUNDS = 3
AT_ONCE = 3


@pytest.mark.timeout(900)
def test_each_answer_is_counted_once_whatever_is_killed(stack: LocalStack, owner: Client, loads: list[Load]) -> None:
    for load in loads:
        load.paths = ("/echo/a", "/api/v1/tickets", "/echo/b", "/nobody", "/api/v1/dashboard/stats")
    for round_ in range(ROUNDS):
        order = random.Random(round_).sample(KINDS, len(KINDS))
        for at in range(0, len(order), AT_ONCE):
            together = order[at : at + AT_ONCE]
            killed = {kind: stack.kill(kind) for kind in together}
            for kind, before in killed.items():
                stack.wait_restarted(kind, before, 90)
    stack.wait_ready(120)
    for load in loads:
        load.over.set()
    for load in loads:
        assert_counted_once(owner, load)
    assert sum(len(load.seen) for load in loads) > 10 * ROUNDS * len(KINDS)
    after = owner.create_key("after")
    with owner.with_key(after["key"]) as client:
        assert client.get("/echo/after").status_code == 200
    owner.settled_usage(after["id"], 1)
