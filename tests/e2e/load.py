"""A steady light load by clients that keep a journal, and the account that is made with it afterwards."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e.client import Client
from tests.support.eventually import eventually_sync

UNLIMITED = {"minute": None, "hour": None, "day": None}


@dataclass
class Load:
    """One key's requests, one after the other, until told to stop; `seen` are the ids of metered answers.

    `unanswered` counts requests whose answer never came: they may be counted, once. `failures` counts answers other
    than 200 of paths that no part of the system but the edge is needed for.
    """

    url: str
    key: dict[str, Any]
    paths: Sequence[str]
    seen: list[str] = field(default_factory=list)
    unanswered: int = 0
    failures: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        turn = 0
        while not self.over.is_set():
            with Client(self.url, self.key["key"]) as client:
                try:
                    while not self.over.wait(0.03):
                        turn += 1
                        path = self.paths[turn % len(self.paths)]
                        self._note(path, client.get(path))
                except httpx2.HTTPError:
                    self.unanswered += 1

    def _note(self, path: str, answer: httpx2.Response) -> None:
        if path.startswith("/echo") and answer.status_code != 200:
            self.failures += 1
        if answer.status_code != 503 or answer.json().get("code") != "not_ready":
            self.seen.append(answer.headers["x-request-id"])


def assert_counted_once(owner: Client, load: Load) -> None:
    """That each answer that the load has seen is one row, that no row is nobody's, and that every counter says the same."""
    key_id = load.key["id"]

    def stored() -> list[dict[str, Any]] | None:
        rows = owner.usage(key_id)
        return rows if set(load.seen) <= {row["request_id"] for row in rows} else None

    rows = eventually_sync(stored, 60, 0.5)
    ids = Counter(row["request_id"] for row in rows)
    assert [name for name, count in ids.items() if count > 1] == []
    assert 0 <= len(rows) - len(load.seen) <= load.unanswered, "a row that belongs to no request of the client"
    calls = sum(row["decision"] == "allowed" for row in rows)

    def counters() -> bool:
        listed = owner.get(f"/api/v1/api-keys/{key_id}").json()["usage_count"]
        shown = {key["id"]: key["usage_count"] for key in owner.stats()["api_keys"]}[key_id]
        total = owner.get(f"/api/v1/api-keys/{key_id}/usage").json()["total"]
        return (listed, shown, total) == (calls, calls, len(rows))

    eventually_sync(counters, 30)
