"""Bad input through the edge: the documented codes, nothing half done, and a real internal error."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.e2e.client import Client, assert_problem
from tests.support.eventually import eventually_sync
from tests.support.stack import Stack

KEYS = "/api/v1/api-keys"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", f"{KEYS}/999999999", 404, "not_found"),
        ("GET", f"{KEYS}/abc", 404, "not_found"),
        ("GET", f"{KEYS}/0", 404, "not_found"),
        ("GET", f"{KEYS}/-1", 404, "not_found"),
        ("GET", f"{KEYS}/99999999999999999999999", 404, "not_found"),
        ("GET", f"{KEYS}?page=0", 422, "invalid"),
        ("GET", f"{KEYS}?page=x", 422, "invalid"),
        ("GET", f"{KEYS}?size=101", 422, "invalid"),
        ("GET", f"{KEYS}?size=0", 422, "invalid"),
        ("GET", f"{KEYS}/1/nothing", 404, "not_found"),
        ("GET", "/api/v1/tickets/7777777", 404, "not_found"),
    ],
)
def test_what_does_not_exist(owner: Client, method: str, path: str, status: int, code: str) -> None:
    assert_problem(owner.send(method, path), status, code)


def test_wrong_method(owner: Client) -> None:
    answer = owner.send("PATCH", KEYS)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "bad_request"),
        (b"", JSON, 422, "invalid"),
        (b'{"name": "\xff"}', JSON, 400, "bad_request"),
        (b'{"name": "a\\u0000b"}', JSON, 422, "invalid"),
        (b'{"name": "a", "description": "a\\u0000b"}', JSON, 422, "invalid"),
        (b'{"name": "\\ud800"}', JSON, 422, "invalid"),
        (b'{"name": "  "}', JSON, 422, "invalid"),
        (json.dumps({"name": "x" * 101}).encode(), JSON, 422, "invalid"),
        (json.dumps({"name": "x", "description": "x" * 501}).encode(), JSON, 422, "invalid"),
        (b'{"name": "x", "colour": "red"}', JSON, 422, "invalid"),
        (b'{"name": null}', JSON, 422, "invalid"),
        (b'{"name": 7}', JSON, 422, "invalid"),
        (b"[]", JSON, 422, "invalid"),
        (b"name=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b'{"name": "' + b"x" * 1_100_000 + b'"}', JSON, 413, "too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_bodies(owner: Client, content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    body = assert_problem(owner.send("POST", KEYS, content=content, headers=headers), status, code)
    if code == "invalid":
        assert body["errors"] and all(set(error) == {"field", "message"} for error in body["errors"])
    assert owner.get(KEYS).json()["total"] == 1


def test_names_are_trimmed_and_keep_their_unicode(owner: Client) -> None:
    created = owner.create_key("  Schlüssel 🔑  ")
    assert created["name"] == "Schlüssel 🔑"
    path = f"{KEYS}/{created['id']}"
    for wrong in ({"name": None}, {"is_active": None}, {"is_active": "yes"}, {"key": "x"}):
        assert_problem(owner.send("PUT", path, json=wrong), 422, "invalid")
    assert owner.get(path).json()["name"] == "Schlüssel 🔑"


def test_others_keys_and_tickets_do_not_exist(admin: Client, owner: Client) -> None:
    key = admin.create_key("not yours")
    ticket = admin.send("POST", "/api/v1/tickets", json={"subject": "not yours"}).json()
    wanted: list[tuple[str, str, Any]] = [
        ("GET", f"{KEYS}/{key['id']}", None),
        ("GET", f"{KEYS}/{key['id']}/usage", None),
        ("PUT", f"{KEYS}/{key['id']}", {"name": "mine"}),
        ("DELETE", f"{KEYS}/{key['id']}", None),
        ("GET", f"/api/v1/tickets/{ticket['id']}", None),
        ("PUT", f"/api/v1/tickets/{ticket['id']}", {"subject": "mine"}),
        ("POST", f"/api/v1/tickets/{ticket['id']}/resolve", None),
        ("POST", f"/api/v1/tickets/{ticket['id']}/replies", {"body": "x"}),
    ]
    for method, path, body in wanted:
        assert_problem(owner.send(method, path, **({"json": body} if body else {})), 404, "not_found")
    assert admin.get(f"{KEYS}/{key['id']}").json()["name"] == "not yours"


def test_an_internal_error_tells_nothing_and_is_metered_and_logged(stack: Stack, owner: Client) -> None:
    created = owner.create_key("a key")
    dsn = stack.env["KEYLEDGER_TICKETS_DATABASE"]
    with owner.with_key(created["key"]) as client, psycopg.connect(dsn, autocommit=True) as database:
        database.execute("REVOKE SELECT ON ticket_counts FROM CURRENT_USER")
        try:
            answer = client.get("/api/v1/tickets")
        finally:
            database.execute("GRANT SELECT ON ticket_counts TO CURRENT_USER")
        body = assert_problem(answer, 500, "internal")
        assert set(body) == {"type", "title", "status", "code", "request_id"}
        assert "ticket_counts" not in json.dumps(body) and "permission denied" not in answer.text
        assert client.get("/api/v1/tickets").status_code == 200
    rows = owner.settled_usage(created["id"], 2)
    assert [row["status_code"] for row in rows] == [200, 500]
    assert rows[1]["request_id"] == body["request_id"]
    logged = eventually_sync(
        lambda: [line for line in stack.logs("tickets-api").splitlines() if body["request_id"] in line]
    )
    assert any("permission denied" in line for line in logged)
    assert all(json.loads(line)["request_id"] == body["request_id"] for line in logged)


def test_no_secret_in_any_log(stack: Stack, owner: Client) -> None:
    created = owner.create_key("canary")
    with owner.with_key(created["key"]) as client:
        request_id = client.get("/api/v1/tickets").headers["x-request-id"]
        client.get("/echo/x")
    owner.settled_usage(created["id"], 2)
    assert stack.holding(created["key"]) == []
    assert stack.holding(request_id) != [], "this looks nowhere"
