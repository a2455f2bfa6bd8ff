"""Rate Limits of the API documentation, as a client sees them."""

from __future__ import annotations

import time

import pytest

from tests.e2e.client import Client, assert_problem
from tests.support.eventually import eventually_sync
from tests.support.stack import Stack


def test_the_hundred_and_first_request_of_a_minute_is_refused_and_admitted_at_reset(owner: Client) -> None:
    created = owner.create_key("limited")
    with owner.with_key(created["key"]) as client:
        answers = [client.get("/echo/x") for _ in range(100)]
        assert {answer.status_code for answer in answers} == {200}
        assert [int(answer.headers["x-ratelimit-remaining"]) for answer in answers] == list(range(99, -1, -1))
        refused = client.get("/echo/x")
        body = assert_problem(refused, 429, "rate_limited")
        assert body["title"]
        assert refused.headers["x-ratelimit-limit"] == "100"
        assert refused.headers["x-ratelimit-remaining"] == "0"
        reset = int(refused.headers["x-ratelimit-reset"])
        now = time.time()
        assert abs(int(refused.headers["retry-after"]) - (reset - now)) <= 2
        assert now < reset <= now + 62
        # The wait that the documentation asks of a client: until Reset, by the same clock.
        eventually_sync(lambda: time.time() >= reset, 70)
        assert client.get("/echo/x").status_code == 200
    rows = owner.settled_usage(created["id"], 102)
    assert sorted(row["decision"] for row in rows) == ["allowed"] * 101 + ["rate_limited"]
    eventually_sync(lambda: owner.get(f"/api/v1/api-keys/{created['id']}").json()["usage_count"] == 101)


def test_a_killed_edge_still_knows_what_it_has_admitted(stack: Stack, owner: Client) -> None:
    created = owner.create_key("limited", limits={"minute": 5, "hour": 50, "day": None})
    with owner.with_key(created["key"]) as client:
        for left in range(4, -1, -1):
            assert client.get("/echo/x").headers["x-ratelimit-remaining"] == str(left)
        before = stack.kill("edge-serving")
        stack.wait_restarted("edge-serving", before)
    with owner.with_key(created["key"]) as client:
        assert_problem(client.get("/echo/x"), 429, "rate_limited")


def test_no_headers_for_an_unlimited_key_and_none_on_401(owner: Client) -> None:
    assert "x-ratelimit-limit" not in owner.get("/echo/x").headers
    with owner.with_key(None) as nobody:
        refused = nobody.get("/echo/x")
        assert_problem(refused, 401, "key_invalid")
        assert refused.headers["www-authenticate"]
        assert "x-ratelimit-limit" not in refused.headers


@pytest.mark.parametrize(
    "secret", ["", "nonsense", "kl_live_" + "A" * 39, "kl_live_28JULUCZ5zC7WLG4ZOQ92pGYkrefnaXiw3lVMVe"]
)
def test_unknown_and_malformed_keys_look_alike(owner: Client, secret: str) -> None:
    answer = owner.send("GET", "/api/v1/api-keys", headers={"X-API-Key": secret})
    body = assert_problem(answer, 401, "key_invalid")
    assert set(body) == {"type", "title", "status", "code", "request_id"}
