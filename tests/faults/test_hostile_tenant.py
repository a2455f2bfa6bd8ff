"""One tenant sends everything odd that it may: others' dashboards and counters stay right and fresh."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest

from services.keys.bootstrap import create_owner
from services.keys.settings import Settings
from shared.ids import new_secret
from tests.e2e.client import Client
from tests.e2e.load import Load
from tests.faults.scenario import Scenario, stretched
from tests.support.eventually import eventually_sync
from tests.support.stack import Stack

ROUNDS = 300
"""More than were once enough to stop the consumer that all share."""
FRESH_SECONDS = 5.0
DATES = (
    None,
    "2099-12-31T23:59:59-12:00",
    "9999-12-31T23:59:59-12:00",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00+14:00",
    "2262-04-12T00:00:00Z",
)
NAMES = ("\u202e\u0000", "\U0001f511" * 60, "odd", "'; DROP TABLE keys; --")


@pytest.fixture
def hostile(stack: Stack) -> Iterator[Client]:
    """Another owner's key, without limits, so that all of what it sends gets in."""
    secret = new_secret("live")
    settings = Settings(database=stack.env["KEYLEDGER_KEYS_DATABASE"], kafka=stack.env["KEYLEDGER_KAFKA"])
    asyncio.run(
        create_owner(settings, name="hostile", secret=secret, command_id=uuid.uuid4(), admin=False, limited=False)
    )
    with Client(stack.url, secret.text) as client:
        eventually_sync(lambda: client.get("/echo/known").status_code == 200, 120)
        yield client


@pytest.mark.timeout(1200)
def test_hostile_tenant(stack: Stack, hostile: Client, owner: Client, loads: list[Load], scenario: Scenario) -> None:
    stop, made = Event(), list[int]()
    thread = Thread(target=_hostile, args=(hostile, stop, scenario, made))
    thread.start()
    slowest = 0.0
    try:
        for _ in range(10):
            before = owner.stats()["active_api_keys"]
            started = time.monotonic()
            owner.create_key("seen soon")
            eventually_sync(lambda before=before: owner.stats()["active_api_keys"] > before, 60, 0.05)
            slowest = max(slowest, time.monotonic() - started)
        eventually_sync(lambda: scenario.faults >= ROUNDS, 600)
    finally:
        stop.set()
        thread.join()
    assert made, "odd keys were made"
    assert slowest < stretched(FRESH_SECONDS)
    assert all(process["ready"] for process in stack.status()["processes"])
    assert [load.failures for load in loads] == [0] * len(loads)
    scenario.account(owner, loads, faults=ROUNDS, answers=200)


def _hostile(client: Client, stop: Event, scenario: Scenario, odd: list[int]) -> None:
    """Odd keys that are changed and used, deep pages, long names and bodies, a flood of calls."""
    while not stop.is_set():
        number = scenario.faults
        made: dict[str, Any] = {
            "name": NAMES[number % len(NAMES)],
            "expires_at": DATES[number // len(NAMES) % len(DATES)],
        }
        answer = client.send("POST", "/api/v1/api-keys", json=made)
        if answer.status_code == 201:
            path = f"/api/v1/api-keys/{answer.json()['id']}"
            client.send("PUT", path, json={"name": "renamed"})
            client.send("POST", f"{path}/deactivate")
            client.send("DELETE", path)
            odd.append(answer.json()["id"])
        client.get("/api/v1/api-keys/1/usage", page=10**9, size=1000)
        client.get(f"/echo/{'x' * 4000}%00%ff", q="\ud7ff" * 200)
        client.send("POST", "/api/v1/tickets", json={"subject": "x" * 100_000})
        for _ in range(5):
            client.get("/echo/flood")
        scenario.faults += 1
