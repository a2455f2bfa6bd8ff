"""Key management as the API documentation shows it: field for field, and what it says of the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shared.ids import well_formed
from tests.integration.keys.conftest import Owner, Usage
from tests.support.service import Service

PATH = "/api/v1/api-keys"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
SHOWN = ["id", "name", "description", "is_active", "created_at", "last_used", "usage_count"]


def _create(owner: Owner, name: str = "My API Key", **fields: Any) -> dict[str, Any]:
    answer = owner.client.post(PATH, json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def _shown(created: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in created.items() if name != "key"}


def test_create(owner: Owner) -> None:
    answer = owner.client.post(PATH, json={"name": "My API Key", "description": "API key for my application"})
    key = answer.json()
    assert answer.status_code == 201
    assert list(key) == ["id", "name", "description", "key", "is_active", "created_at", "last_used", "usage_count"]
    assert key | {"id": 0, "key": "", "created_at": ""} == {
        "id": 0,
        "name": "My API Key",
        "description": "API key for my application",
        "key": "",
        "is_active": True,
        "created_at": "",
        "last_used": None,
        "usage_count": 0,
    }
    assert key["id"] > 0
    assert well_formed(key["key"])
    assert key["key"].startswith("kl_live_")
    assert TIME.fullmatch(key["created_at"])
    assert answer.headers["location"] == f"{PATH}/{key['id']}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def test_list(owner: Owner) -> None:
    first = owner.client.get(PATH).json()["api_keys"][0]
    created = [_create(owner, f"number {number}") for number in range(11)]
    answer = owner.client.get(PATH)
    assert answer.status_code == 200
    expected = [first, *map(_shown, created)]
    assert answer.json() == {"api_keys": expected[:10], "total": 12, "page": 1, "size": 10}
    assert list(answer.json()["api_keys"][1]) == SHOWN
    assert owner.client.get(f"{PATH}?page=2&size=10").json()["api_keys"] == expected[10:]
    assert owner.client.get(f"{PATH}?page=3&size=5").json() == {
        "api_keys": expected[10:],
        "total": 12,
        "page": 3,
        "size": 5,
    }


def test_details(owner: Owner, usage: type[Usage]) -> None:
    call = {
        "id": 1,
        "endpoint": "/api/v1/tickets",
        "method": "GET",
        "status_code": 200,
        "response_time": 0.15,
        "created_at": "2024-03-21T15:30:00Z",
    }
    usage.answer = [call]
    key = _create(owner)
    answer = owner.client.get(f"{PATH}/{key['id']}")
    assert answer.status_code == 200
    assert list(answer.json()) == [*SHOWN, "usage"]
    assert answer.json() == _shown(key) | {"usage": [call]}
    assert "keyledger-missing" not in answer.headers
    assert usage.asked == [(f"/keys/{key['id']}/calls?limit=100", owner.client.headers["keyledger-identity"])]


@pytest.mark.parametrize("answer", [None, "nonsense"])
def test_details_without_the_usage_service(owner: Owner, usage: type[Usage], answer: Any) -> None:
    usage.answer = answer
    key = _create(owner)
    found = owner.client.get(f"{PATH}/{key['id']}")
    assert (found.status_code, found.json()) == (200, _shown(key) | {"usage": []})
    assert found.headers["keyledger-missing"] == "usage"


def test_update(owner: Owner) -> None:
    key = _create(owner, description="words")
    path = f"{PATH}/{key['id']}"
    wanted = {"name": "Updated API Key", "description": "Updated description", "is_active": True}
    answer = owner.client.put(path, json=wanted)
    assert (answer.status_code, answer.json()) == (200, _shown(key) | wanted)
    assert list(answer.json()) == SHOWN
    off = owner.client.put(path, json={"is_active": False}).json()
    assert off == _shown(key) | wanted | {"is_active": False}
    assert owner.client.get(path).json() == off | {"usage": []}
    assert owner.client.put(path, json={"description": None}).json() == off | {"description": None}
    assert owner.client.put(path, json={"is_active": True}).json()["is_active"] is True


def test_delete(owner: Owner) -> None:
    key = _create(owner)
    path = f"{PATH}/{key['id']}"
    total = owner.client.get(PATH).json()["total"]
    answer = owner.client.delete(path)
    assert (answer.status_code, answer.json()) == (200, {"message": "API key deleted successfully"})
    for again in (owner.client.get(path), owner.client.put(path, json={"name": "x"}), owner.client.delete(path)):
        assert (again.status_code, again.json()["code"]) == (404, "not_found")
    listed = owner.client.get(PATH).json()
    assert listed["total"] == total - 1
    assert key["id"] not in [shown["id"] for shown in listed["api_keys"]]


def test_a_key_may_delete_itself(owner: Owner) -> None:
    assert owner.client.delete(f"{PATH}/{owner.key_id}").status_code == 200
    assert owner.client.post(PATH, json={"name": "x"}).json()["code"] == "key_invalid"


def test_nothing_changes_no_event(keys: Service, owner: Owner) -> None:
    key = _create(owner, description="words")
    events = keys.sql("SELECT count(*) FROM events")
    unchanged: list[dict[str, Any]] = [
        {},
        {"name": "My API Key"},
        {"name": " My API Key "},
        {"name": "My API Key", "description": "words", "is_active": True},
    ]
    for fields in unchanged:
        answer = owner.client.put(f"{PATH}/{key['id']}", json=fields)
        assert (answer.status_code, answer.json()) == (200, _shown(key))
        assert "keyledger-propagation" in answer.headers
    assert keys.sql("SELECT count(*) FROM events") == events


def test_the_log_of_requests_is_passed_on(owner: Owner, usage: type[Usage]) -> None:
    usage.answer = {"usage": [], "total": 0, "page": 2, "size": 1000}
    answer = owner.client.get(f"{PATH}/{owner.key_id}/usage?page=2&size=1000")
    assert (answer.status_code, answer.json()) == (200, usage.answer)
    assert usage.asked[0][0] == f"/keys/{owner.key_id}/usage?page=2&size=1000"
    owner.client.get(f"{PATH}/{owner.key_id}/usage?before=77&size=20")
    assert usage.asked[1][0] == f"/keys/{owner.key_id}/usage?page=1&size=20&before=77"
    usage.answer = None
    answer = owner.client.get(f"{PATH}/{owner.key_id}/usage")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    usage.answer = {"usage": [{"decision": "of_a_later_version"}], "total": 1, "page": 1, "size": 10}
    assert owner.client.get(f"{PATH}/{owner.key_id}/usage").json()["code"] == "unavailable"
