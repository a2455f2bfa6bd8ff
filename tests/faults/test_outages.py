"""A minute without Kafka or without PostgreSQL: known keys go on, commands say so, and every counter is right afterwards."""

from __future__ import annotations

import time

import pytest

from tests.e2e.client import Client, assert_problem
from tests.e2e.load import Load, assert_counted_once
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

OUTAGE_SECONDS = 60
COMMAND_SECONDS = 15


@pytest.mark.timeout(600)
def test_a_minute_without_postgresql(stack: LocalStack, owner: Client, loads: list[Load]) -> None:
    known = owner.create_key("before")
    path = f"/api/v1/api-keys/{known['id']}"
    before = {"refused": 0}

    def refused() -> None:
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
            assert time.monotonic() - started < COMMAND_SECONDS
            before["refused"] += 1

    _without(stack, "postgres", refused, loads)
    assert before["refused"] >= 10
    stack.wait_ready(120)
    assert owner.get(path).json()["name"] == "before", "a refused command is not carried out later"
    assert owner.send("PUT", path, json={"name": "after"}).json()["name"] == "after"
    for load in loads:
        assert_counted_once(owner, load)


@pytest.mark.timeout(600)
def test_a_minute_without_kafka(stack: LocalStack, owner: Client, loads: list[Load]) -> None:
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
    stack.wait_ready(120)
    for key in made:
        with owner.with_key(key["key"]) as client:
            eventually_sync(lambda client=client: client.get("/echo/x").status_code == 200)
    for load in loads:
        assert_counted_once(owner, load)


def _without(stack: LocalStack, name: str, meanwhile: object, loads: list[Load]) -> None:
    """Stops `name` for a minute, calls `meanwhile` again and again, and expects the load's known keys to be served."""
    assert callable(meanwhile)
    for load in loads:
        eventually_sync(lambda load=load: load.seen)
    stack.pause(name)
    try:
        served = [len(load.seen) for load in loads]
        end = time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < end:
            meanwhile()
        assert all(len(load.seen) > count for load, count in zip(loads, served, strict=True))
    finally:
        stack.resume(name)
    assert [load.failures for load in loads] == [0] * len(loads)
    for load in loads:
        load.over.set()
