"""Kafka is lost: an empty new cluster answers at its address. Everything comes back by itself, and no answer is counted
twice or not at all, since what usage had not stored is still on the edge's disk.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.kafka import cluster_id
from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load
from tests.faults.brokers import empty_kafka
from tests.faults.receipt import receipt
from tests.faults.scenario import Scenario
from tests.faults.states import assert_states_are_whole
from tests.faults.twin import second_edge, url_of
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

TIMES = 2


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_empty_kafka(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    random = scenario.random()
    for number in range(TIMES):
        refused = owner.create_key("refused", limits=UNLIMITED)
        owner.send("PUT", f"/api/v1/api-keys/{refused['id']}", json={"is_active": False})
        ticket = owner.send("POST", "/api/v1/tickets", json={"subject": f"before {number}"})
        assert ticket.status_code == 201
        enough = sum(len(load.seen) for load in loads) + random.randrange(150, 450)
        eventually_sync(lambda enough=enough: sum(len(load.seen) for load in loads) > enough, 120)
        with _never_served(owner, refused["key"]):
            cluster = empty_kafka(stack)
            scenario.faults += 1
            stack.wait_ready(300)
            assert asyncio.run(cluster_id(stack.env["KEYLEDGER_KAFKA"])) == cluster
            made = eventually_sync(lambda: _confirmed(owner), 120)
        with owner.with_key(made) as client:
            assert client.get("/echo/made").status_code == 200
        eventually_sync(lambda: assert_states_are_whole(stack) is None, 60)
    with second_edge(stack, tmp_path) as cold, Client(url_of(cold), refused["key"]) as client:
        cold.start()
        cold.wait_ready()
        assert client.get("/echo/cold").status_code == 403
    assert [load.failures for load in loads] == [0] * len(loads), "known keys are served all the time"
    scenario.account(owner, loads, faults=TIMES, answers=500)


def _confirmed(owner: Client) -> str | None:
    """The secret of a new key that the edge has confirmed; None when it didn't in time."""
    answer = owner.send("POST", "/api/v1/api-keys", json={"name": "made", "limits": UNLIMITED})
    found = receipt(answer)
    return str(answer.json()["key"]) if found.edges and found.confirmed == found.edges else None


@contextmanager
def _never_served(owner: Client, secret: str) -> Iterator[None]:
    """The key is refused all the time; what the edge answers is noted in a thread beside."""
    over, answers = threading.Event(), Counter[int]()

    def ask() -> None:
        with owner.with_key(secret) as client:
            while not over.wait(0.1):
                answers[client.get("/echo/refused").status_code] += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
    assert answers and not answers.keys() - {403}, answers
