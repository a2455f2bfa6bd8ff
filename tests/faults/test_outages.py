"""Kafka and PostgreSQL hang for a minute, or end and start again, under load: known keys go on, commands say what can't
be done, and every counter is right afterwards.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.e2e.client import Client, assert_problem
from tests.e2e.load import Load
from tests.faults.scenario import Scenario, stretched
from tests.support.eventually import eventually_sync
from tests.support.stack import Stack

OUTAGE_SECONDS = 60
COMMAND_SECONDS = 15
PACE = 0.25
"""Seconds between commands in an outage: an owner may have a thousand keys."""
RESTARTS = 4
ENDED_BY = {"kafka": signal.SIGTERM, "postgres": signal.SIGINT}
"""The signals that end them in order."""


@pytest.mark.timeout(1200)
def test_a_minute_without_postgresql(stack: Stack, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    known = owner.create_key("before")
    path = f"/api/v1/api-keys/{known['id']}"
    refused = 0

    def refuses() -> None:
        nonlocal refused
        for method, target, body in (
            ("POST", "/api/v1/api-keys", {"name": "in between"}),
            ("PUT", path, {"name": "renamed"}),
            ("GET", path, None),
            ("POST", "/api/v1/tickets", {"subject": "in between"}),
            ("GET", "/api/v1/dashboard/stats", None),
        ):
            started = time.monotonic()
            answer = owner.send(method, target, **({"json": body} if body else {}))
            assert_problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert time.monotonic() - started < stretched(COMMAND_SECONDS)
            refused += 1

    _without(stack, "postgres", refuses, loads)
    scenario.faults += 1
    assert refused >= 10
    stack.wait_ready(300)
    found = eventually_sync(lambda: owner.get(path).json()["name"], 60)
    assert found == "before", "a refused command is not carried out later"
    assert owner.send("PUT", path, json={"name": "after"}).json()["name"] == "after"
    scenario.account(owner, loads, faults=1, answers=1000)


@pytest.mark.timeout(1200)
def test_a_minute_without_kafka(stack: Stack, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    made: list[dict[str, str]] = []

    def commands_go_on() -> None:
        answer = owner.send("POST", "/api/v1/api-keys", json={"name": f"in between {len(made)}"})
        assert answer.status_code == 201
        assert "edges=1; confirmed=1" not in answer.headers["keyledger-propagation"]
        made.append(answer.json())
        with owner.with_key(made[-1]["key"]) as client:
            assert client.get("/echo/x").status_code in (401, 503)
        assert owner.get("/api/v1/api-keys").status_code == 200

    _without(stack, "kafka", commands_go_on, loads)
    scenario.faults += 1
    stack.wait_ready(300)
    for key in made:
        with owner.with_key(key["key"]) as client:
            eventually_sync(lambda client=client: client.get("/echo/x").status_code == 200, 120)
    scenario.account(owner, loads, faults=1, answers=1000)


@pytest.mark.timeout(1200)
def test_kafka_and_postgresql_restarted(stack: Stack, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    names = ["kafka", "postgres"] * RESTARTS
    scenario.random().shuffle(names)
    for name in names:
        served = sum(len(load.seen) for load in loads)
        eventually_sync(lambda served=served: sum(len(load.seen) for load in loads) > served + 50, 120)
        stack.wait_restarted(name, stack.kill(name, ENDED_BY[name]), 300)
        scenario.faults += 1
    assert [load.failures for load in loads] == [0] * len(loads), "known keys are served all the time"
    stack.wait_ready(300)
    scenario.account(owner, loads, faults=2 * RESTARTS, answers=500)


def _without(stack: Stack, name: str, meanwhile: Callable[[], None], loads: list[Load]) -> None:
    """Stops `name` for a minute, calls `meanwhile` again and again, and expects the load's known keys to be served."""
    for load in loads:
        eventually_sync(lambda load=load: load.seen)
    stack.pause(name)
    try:
        served = [len(load.seen) for load in loads]
        end = time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < end:
            meanwhile()
            time.sleep(PACE)
        assert all(len(load.seen) > count for load, count in zip(loads, served, strict=True))
    finally:
        stack.resume(name)
    assert [load.failures for load in loads] == [0] * len(loads)
