"""A steady light load by clients that keep a journal, and the account that is made with it afterwards."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e.client import Client
from tests.support.eventually import eventually_sync

UNLIMITED = {"minute": None, "hour": None, "day": None}
OWN = ("/echo", "/nobody")
"""Paths that the user's own routes claim: each request adds a number of its own to them, so that its row is known by it."""

UNCOUNTED = {"not_ready", "not_recorded"}
"""The codes of answers to a key that have no row: nothing was judged, or the request log could not be written."""

_PAUSE = 0.03


@dataclass
class Load:
    """One key's requests, one after the other, until told to stop. The journal: `seen` has the ids of metered answers,
    and what they were.

    `unanswered` counts, by path, requests that were sent and whose answer never came: they may be counted, once. Those
    that found nobody to connect to are not among them. `failures` counts answers other than 200 of paths that no part
    of the system but the edge is needed for.
    """

    url: str
    key: dict[str, Any]
    paths: Sequence[str]
    seen: dict[str, str] = field(default_factory=dict)
    unanswered: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.ended.set()

    def end(self) -> None:
        """Ends it, and waits for its last answer."""
        self.over.set()
        assert self.ended.wait(60)

    def _run(self) -> None:
        turn = 0
        while not self.over.wait(_PAUSE):
            with Client(self.url, self.key["key"]) as client:
                answered = True
                while answered and not self.over.wait(_PAUSE):
                    turn += 1
                    path = self.paths[turn % len(self.paths)]
                    answered = self._ask(client, f"{path}/{turn}" if path.startswith(OWN) else path)

    def _ask(self, client: Client, path: str) -> bool:
        """Whether there was an answer; without one the connection is of no further use."""
        try:
            self._note(path, client.get(path))
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            return False
        except httpx2.HTTPError:
            self.unanswered[path] += 1
            return False
        return True

    def _note(self, path: str, answer: httpx2.Response) -> None:
        if not self.seen and answer.status_code in (401, 503):
            return  # the edge doesn't know the key yet: that is not metered
        if path.startswith("/echo") and answer.status_code != 200:
            self.failures += 1
        code = "" if answer.is_success else answer.json().get("code")
        if code not in UNCOUNTED:
            self.seen[answer.headers["x-request-id"]] = f"{path}: {answer.status_code} {code}"


@contextmanager
def steady(loads: Sequence[Load]) -> Iterator[None]:
    """Runs the loads until the context ends."""
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for load in loads:
            load.over.set()
        for thread in threads:
            thread.join()


def assert_counted_once(owner: Client, load: Load, deadline: float = 60.0) -> int:
    """That each answer that the load has seen is one row, that no row is nobody's, and that every counter says the same.

    Returns how many rows there are; `deadline` is how long (s) the last of them may take.
    """
    key_id, seen = load.key["id"], set(load.seen)

    def settled() -> list[dict[str, Any]]:
        rows = owner.usage(key_id)
        calls = sum(row["decision"] == "allowed" for row in rows)
        missing = seen - {row["request_id"] for row in rows}
        assert not missing, f"{len(missing)} answers without a row: {[load.seen[each] for each in missing][:5]}"
        listed = owner.get(f"/api/v1/api-keys/{key_id}").json()["usage_count"]
        shown = {key["id"]: key["usage_count"] for key in owner.stats()["api_keys"]}[key_id]
        total = owner.get(f"/api/v1/api-keys/{key_id}/usage").json()["total"]
        counted = f"rows {len(rows)}, of them calls {calls}; list {listed}, dashboard {shown}, total {total}"
        assert (listed, shown, total) == (calls, calls, len(rows)), counted
        return rows

    rows = eventually_sync(settled, deadline, 0.5)
    ids = Counter(row["request_id"] for row in rows)
    assert [name for name, count in ids.items() if count > 1] == []
    others = Counter(row["endpoint"] for row in rows if row["request_id"] not in seen)
    assert others - load.unanswered == Counter(), "rows that belong to no request of the client"
    return len(rows)
