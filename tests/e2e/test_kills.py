"""Every kind of process is killed with SIGKILL under load; afterwards each answer that a client saw is counted once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.e2e.client import Client
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

KINDS = (
    "edge-serve",
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
UNLIMITED = {"minute": None, "hour": None, "day": None}
PATHS = ("/echo/a", "/api/v1/tickets", "/echo/b", "/nobody", "/api/v1/dashboard/stats")


@dataclass
class Load:
    """One key's requests, one after the other, until told to stop; `seen` are the ids of metered answers."""

    url: str
    key: dict[str, Any]
    seen: list[str] = field(default_factory=list)
    unmetered: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        turn = 0
        while not self.over.is_set():
            with Client(self.url, self.key["key"]) as client:
                try:
                    while not self.over.wait(0.03):
                        turn += 1
                        self._note(client.get(PATHS[turn % len(PATHS)]))
                except httpx2.HTTPError:
                    self.unmetered["no answer"] += 1

    def _note(self, answer: httpx2.Response) -> None:
        code = answer.json().get("code") if answer.status_code == 503 else None
        if code == "not_ready":
            self.unmetered[code] += 1
        else:
            self.seen.append(answer.headers["x-request-id"])


@pytest.fixture
def loads(owner: Client) -> Iterator[list[Load]]:
    running = [Load(owner.url, owner.create_key(f"load {n}", limits=UNLIMITED)) for n in range(3)]
    threads = [threading.Thread(target=load.run) for load in running]
    for thread in threads:
        thread.start()
    yield running
    for load in running:
        load.over.set()
    for thread in threads:
        thread.join()


@pytest.mark.timeout(900)
def test_each_answer_is_counted_once_whatever_is_killed(stack: LocalStack, owner: Client, loads: list[Load]) -> None:
    kills = 0
    for _ in range(ROUNDS):
        for kind in KINDS:
            before = stack.kill(kind)
            stack.wait_restarted(kind, before, 90)
            kills += 1
    stack.wait_ready(120)
    for load in loads:
        load.over.set()
    assert kills == ROUNDS * len(KINDS)
    for load in loads:
        _assert_counted_once(owner, load)
    assert sum(len(load.seen) for load in loads) > 10 * kills
    after = owner.create_key("after")
    with owner.with_key(after["key"]) as client:
        assert client.get("/echo/after").status_code == 200
    owner.settled_usage(after["id"], 1)


def _assert_counted_once(owner: Client, load: Load) -> None:
    key_id = load.key["id"]

    def stored() -> list[dict[str, Any]] | None:
        rows = owner.usage(key_id)
        return rows if set(load.seen) <= {row["request_id"] for row in rows} else None

    rows = eventually_sync(stored, 60, 0.5)
    assert rows is not None
    ids = Counter(row["request_id"] for row in rows)
    assert [name for name, count in ids.items() if count > 1] == []
    unseen = len(rows) - len(load.seen)
    assert 0 <= unseen <= load.unmetered["no answer"], "a row that belongs to no request of the client"
    calls = sum(row["decision"] == "allowed" for row in rows)

    def counters() -> bool:
        listed = owner.get(f"/api/v1/api-keys/{key_id}").json()["usage_count"]
        shown = {key["id"]: key["usage_count"] for key in owner.stats()["api_keys"]}[key_id]
        total = owner.get(f"/api/v1/api-keys/{key_id}/usage").json()["total"]
        return (listed, shown, total) == (calls, calls, len(rows))

    eventually_sync(counters, 30)
