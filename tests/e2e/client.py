"""A client of the public API as a user would write one, for tests."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx2

from tests.support.eventually import eventually_sync


class Client:
    """Sends one key with each request."""

    def __init__(self, url: str, secret: str | None) -> None:
        self.url = url
        self.secret = secret
        self._http = httpx2.Client(base_url=url, timeout=20, headers={"X-API-Key": secret} if secret else {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self._http.request(method, path, **options)

    def get(self, path: str, **query: Any) -> httpx2.Response:
        return self.send("GET", path, params=query)

    def create_key(self, name: str = "a key", **fields: Any) -> dict[str, Any]:
        answer = self.send("POST", "/api/v1/api-keys", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def with_key(self, secret: str | None) -> Client:
        return Client(self.url, secret)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/v1/dashboard/stats").json()
        return found

    def usage(self, key_id: int) -> list[dict[str, Any]]:
        """All rows of the key, newest first."""
        rows: list[dict[str, Any]] = []
        query = {"size": 1000}
        while page := self.get(f"/api/v1/api-keys/{key_id}/usage", **query).json()["usage"]:
            rows += page
            query["before"] = page[-1]["id"]
        return rows

    def settled_usage(self, key_id: int, count: int, deadline: float = 30.0) -> list[dict[str, Any]]:
        """The key's rows when there are `count` of them."""

        def enough() -> list[dict[str, Any]] | None:
            rows = self.usage(key_id)
            return rows if len(rows) >= count else None

        found = eventually_sync(enough, deadline)
        assert found is not None
        return found


def assert_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """That the answer is a problem (RFC 9457) of this status and code; its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body
