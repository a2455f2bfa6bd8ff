"""The API documentation, example by example: the exact fields, their types, the codes and the headers."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx2

from shared.ids import well_formed
from tests.e2e.client import Client, assert_problem
from tests.support.eventually import eventually_sync

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class _Time:
    """Equal to any time in the form of the documentation."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and TIME.fullmatch(other) is not None

    __hash__ = None  # type: ignore[assignment]


class _Of:
    """Equal to any value of exactly this type."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return type(other) is self._kind

    __hash__ = None  # type: ignore[assignment]


A_TIME, AN_ID, A_NUMBER = _Time(), _Of(int), _Of(float)
KEY = {
    "id": AN_ID,
    "name": "My API Key",
    "description": "API key for my application",
    "is_active": True,
    "created_at": A_TIME,
    "last_used": None,
    "usage_count": 0,
}
BODY = {"name": "My API Key", "description": "API key for my application"}


def _assert_limits(answer: httpx2.Response, limit: int = 100) -> None:
    assert answer.headers["x-ratelimit-limit"] == str(limit)
    assert 0 <= int(answer.headers["x-ratelimit-remaining"]) < limit
    assert time.time() - 2 <= int(answer.headers["x-ratelimit-reset"]) <= time.time() + 62


def test_create(owner: Client) -> None:
    answer = owner.send("POST", "/api/v1/api-keys", json=BODY)
    assert answer.status_code == 201
    body = answer.json()
    assert list(body) == ["id", "name", "description", "key", "is_active", "created_at", "last_used", "usage_count"]
    assert body == {**KEY, "key": body["key"]}
    assert well_formed(body["key"])
    assert answer.headers["location"] == f"/api/v1/api-keys/{body['id']}"
    assert re.fullmatch(r"edges=1; confirmed=1; ms=\d+", answer.headers["keyledger-propagation"])


def test_a_key_works_at_once_and_not_after_its_deletion(owner: Client) -> None:
    for _ in range(20):
        created = owner.create_key()
        with owner.with_key(created["key"]) as client:
            assert client.get("/api/v1/api-keys").status_code == 200
            assert client.send("DELETE", f"/api/v1/api-keys/{created['id']}").status_code == 200
            assert_problem(client.get("/api/v1/api-keys"), 401, "key_invalid")


def test_list(owner: Client) -> None:
    ids = [1, *(owner.create_key(**BODY)["id"] for _ in range(3))][1:]
    body = owner.get("/api/v1/api-keys", page=1, size=10).json()
    assert list(body) == ["api_keys", "total", "page", "size"]
    assert [key["id"] for key in body["api_keys"]][1:] == ids
    assert body["api_keys"][1:] == [KEY] * 3
    assert (body["total"], body["page"], body["size"]) == (4, 1, 10)
    assert owner.get("/api/v1/api-keys").json()["size"] == 10
    second = owner.get("/api/v1/api-keys", page=2, size=3).json()
    assert ([key["id"] for key in second["api_keys"]], second["total"]) == (ids[2:], 4)
    assert owner.get("/api/v1/api-keys", page=10**9).json()["api_keys"] == []


def test_details_with_usage(owner: Client) -> None:
    created = owner.create_key(**BODY)
    with owner.with_key(created["key"]) as client:
        _assert_limits(client.get("/api/v1/tickets"))
    details = eventually_sync(lambda: _details(owner, created["id"], 1))
    assert list(details) == [*KEY, "usage"]
    assert details == {**KEY, "last_used": A_TIME, "usage_count": 1, "usage": details["usage"]}
    assert details["usage"] == [
        {
            "id": AN_ID,
            "endpoint": "/api/v1/tickets",
            "method": "GET",
            "status_code": 200,
            "response_time": A_NUMBER,
            "created_at": A_TIME,
        }
    ]
    assert 0 < details["usage"][0]["response_time"] < 5


def _details(client: Client, key_id: int, calls: int) -> dict[str, Any] | None:
    found: dict[str, Any] = client.get(f"/api/v1/api-keys/{key_id}").json()
    return found if found["usage_count"] == calls and len(found["usage"]) == calls else None


def test_update(owner: Client) -> None:
    created = owner.create_key(**BODY)
    path = f"/api/v1/api-keys/{created['id']}"
    changed = {"name": "Updated API Key", "description": "Updated description", "is_active": True}
    answer = owner.send("PUT", path, json=changed)
    assert answer.status_code == 200
    assert answer.json() == {**KEY, **changed}
    assert owner.send("PUT", path, json={"description": None}).json() == {**KEY, **changed, "description": None}
    unchanged = owner.send("PUT", path, json={})
    assert unchanged.json() == {**KEY, **changed, "description": None}
    assert "confirmed=1" in unchanged.headers["keyledger-propagation"]


def test_deactivate_and_reactivate(owner: Client) -> None:
    created = owner.create_key()
    path = f"/api/v1/api-keys/{created['id']}"
    with owner.with_key(created["key"]) as client:
        assert owner.send("PUT", path, json={"is_active": False}).json()["is_active"] is False
        refused = client.get("/api/v1/tickets")
        assert_problem(refused, 403, "key_inactive")
        assert owner.send("PUT", path, json={"is_active": True}).json()["is_active"] is True
        assert client.get("/api/v1/tickets").status_code == 200


def test_delete(owner: Client) -> None:
    created = owner.create_key()
    path = f"/api/v1/api-keys/{created['id']}"
    answer = owner.send("DELETE", path)
    assert (answer.status_code, answer.json()) == (200, {"message": "API key deleted successfully"})
    for method in ("GET", "PUT", "DELETE"):
        options = {"json": {}} if method == "PUT" else {}
        assert_problem(owner.send(method, path, **options), 404, "not_found")
    assert owner.get("/api/v1/api-keys").json()["total"] == 1


def test_dashboard(owner: Client) -> None:
    empty = owner.stats()
    assert list(empty) == [
        "open_tickets",
        "resolved_tickets",
        "active_api_keys",
        "total_api_calls",
        "api_usage",
        "recent_tickets",
        "api_keys",
    ]
    first, second = owner.create_key("first"), owner.create_key("second")
    with owner.with_key(first["key"]) as client:
        for _ in range(3):
            client.get("/echo/ok")
        client.get("/nobody")
    ticket = owner.send("POST", "/api/v1/tickets", json={"subject": "Ticket Subject"}).json()
    other = owner.send("POST", "/api/v1/tickets", json={"subject": "Another", "body": "Help"}).json()
    owner.send("POST", f"/api/v1/tickets/{other['id']}/resolve")
    owner.send("DELETE", f"/api/v1/api-keys/{second['id']}")

    def settled() -> dict[str, Any] | None:
        found = owner.stats()
        counts = {key["id"]: key["usage_count"] for key in found["api_keys"]}
        done = counts.get(first["id"]) == 4 and found["resolved_tickets"] == 1 and second["id"] not in counts
        return found if done else None

    stats = eventually_sync(settled)
    assert (stats["open_tickets"], stats["resolved_tickets"], stats["active_api_keys"]) == (1, 1, 2)
    assert stats["api_usage"] == {"success_rate": A_NUMBER, "avg_response_time": A_NUMBER}
    assert stats["recent_tickets"] == [
        {"id": other["id"], "subject": "Another", "status": "resolved", "created_at": A_TIME},
        {"id": ticket["id"], "subject": "Ticket Subject", "status": "open", "created_at": A_TIME},
    ]
    assert stats["api_keys"][1] == {
        "id": first["id"],
        "name": "first",
        "is_active": True,
        "usage_count": 4,
        "last_used": A_TIME,
    }


def test_the_status_that_each_row_has(owner: Client) -> None:
    created = owner.create_key()
    with owner.with_key(created["key"]) as client:
        for path in ("/echo/1", "/echo/2", "/nobody"):
            client.get(path)
        rows = owner.settled_usage(created["id"], 3)
        assert [row["status_code"] for row in rows] == [502, 200, 200]


def test_identity_and_forged_headers(owner: Client, upstream: Any) -> None:
    answer = owner.send(
        "GET",
        "/echo/identity",
        headers={"Keyledger-Identity": "forged", "X-Forwarded-For": "1.2.3.4", "X-Request-ID": "mine"},
    )
    [seen] = upstream.of("/echo/identity")
    assert seen.values("X-API-Key") == []
    assert len(seen.values("Keyledger-Identity")) == 1 and seen.values("Keyledger-Identity") != ["forged"]
    assert seen.values("X-Request-ID") == [answer.headers["x-request-id"]] != ["mine"]


def test_permissions(owner: Client) -> None:
    assert_problem(owner.get("/reports/x"), 403, "permission_missing")
    assert_problem(
        owner.send("POST", "/api/v1/api-keys", json={"name": "n", "permissions": ["admin"]}), 403, "permission_missing"
    )
    assert_problem(owner.get("/api/v1/api-keys", owner=1), 403, "permission_missing")


def test_admin_acts_for_other_owners(admin: Client, owner: Client) -> None:
    created = owner.create_key("theirs")
    assert admin.get(f"/api/v1/api-keys/{created['id']}").json()["name"] == "theirs"
    reporter = admin.create_key("reporter", permissions=["reports:read"])
    with admin.with_key(reporter["key"]) as client:
        assert client.get("/reports/x").status_code == 200
        assert_problem(client.get(f"/api/v1/api-keys/{created['id']}"), 404, "not_found")


def test_expiry(owner: Client) -> None:
    soon = time.time() + 1.5
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(soon)) + f".{int(soon % 1 * 1000):03d}Z"
    created = owner.create_key(expires_at=stamp)
    with owner.with_key(created["key"]) as client:
        assert client.get("/echo/x").status_code == 200
        eventually_sync(lambda: client.get("/echo/x").status_code == 401)
        assert_problem(client.get("/echo/x"), 401, "key_invalid")
    assert time.time() >= soon
