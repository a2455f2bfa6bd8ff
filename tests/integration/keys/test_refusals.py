"""What key management refuses, and in which words; and that it comes back when the database does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.errors import Conflict
from tests.integration.keys.conftest import Owner, Usage, make_key, make_owner
from tests.support.eventually import eventually_sync
from tests.support.refusals import (
    BAD_IDS,
    BAD_PAGES,
    BROKEN_BODIES,
    JSON,
    LAST_PAGE,
    MEBIBYTE,
    assert_invalid,
    assert_problem,
)
from tests.support.service import REQUEST_ID, Service
from tests.support.stack import Servers

PATH = "/api/v1/api-keys"


def _in(**difference: float) -> str:
    return (datetime.now(UTC) + timedelta(**difference)).isoformat()


@pytest.mark.parametrize(
    "name",
    ["", "   ", "x" * 101, "two\nlines", "a\x00b", "a\x1bb", "a\x9fb", 5, True, None, ["x"], {}],
    ids=repr,
)
def test_a_name_has_its_rules(owner: Owner, name: object) -> None:
    assert_invalid(owner.client.post(PATH, json={"name": name}), "name")
    answer = owner.client.put(f"{PATH}/{owner.key_id}", json={"name": name})
    assert_problem(answer, 422, "invalid")


def test_a_name_may_be_long_and_foreign(owner: Owner) -> None:
    for name in ("x" * 100, "  " + "ü" * 100 + "\n", "🔑"):
        assert owner.client.post(PATH, json={"name": name}).json()["name"] == name.strip()


@pytest.mark.parametrize("description", ["x" * 501, "a\x00b", 5, ["x"]], ids=lambda value: repr(value)[:20])
def test_a_description_has_its_rules(owner: Owner, description: object) -> None:
    assert_invalid(owner.client.post(PATH, json={"name": "x", "description": description}), "description")
    answer = owner.client.put(f"{PATH}/{owner.key_id}", json={"description": description})
    assert_invalid(answer, "description")


def test_a_description_may_be_long_and_of_many_lines(owner: Owner) -> None:
    for description in ("x" * 500, "one\ntwo\ttabs", "", None):
        assert (
            owner.client.post(PATH, json={"name": "x", "description": description}).json()["description"] == description
        )


@pytest.mark.parametrize("is_active", ["true", 1, 0, None, []], ids=repr)
def test_activity_is_true_or_false(owner: Owner, is_active: object) -> None:
    assert_problem(owner.client.put(f"{PATH}/{owner.key_id}", json={"is_active": is_active}), 422, "invalid")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"key": "kl_live_x"}, "key"),
        ({"is_active": True}, "is_active"),
        ({"owner_id": 1}, "owner_id"),
        ({"permissions": ["Upper"]}, "permissions.0"),
        ({"permissions": [""]}, "permissions.0"),
        ({"permissions": "admin"}, "permissions"),
        ({"permissions": ["a"] * 101}, "permissions"),
        ({"limits": {"minute": 0}}, "limits.minute"),
        ({"limits": {"minute": 1.5}}, "limits.minute"),
        ({"limits": {"minute": 10**12}}, "limits.minute"),
        ({"limits": {"second": 1}}, "limits.second"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"expires_at": 1_900_000_000}, "expires_at"),
    ],
    ids=str,
)
def test_what_a_new_key_may_not_be(owner: Owner, fields: dict[str, Any], where: str) -> None:
    assert_invalid(owner.client.post(PATH, json={"name": "x"} | fields), where)


def test_an_expiry_is_held_in_utc(keys: Service, owner: Owner) -> None:
    made = owner.client.post(PATH, json={"name": "x", "expires_at": "2090-01-01T00:00:00-12:00"}).json()["id"]
    found = keys.sql(f"SELECT data->>'expires_at' FROM events WHERE stream = 'key-{made}'")
    assert found == [("2090-01-01T12:00:00Z",)]


def test_fields_that_nobody_knows_are_refused(owner: Owner) -> None:
    assert_invalid(owner.client.put(f"{PATH}/{owner.key_id}", json={"usage_count": 0}), "usage_count")
    for field in (b"\\ud800", b"\\u0000", b"\xf0\x9f\x94\x91"):
        answer = owner.client.post(PATH, content=b'{"name": "x", "%s": 1}' % field, headers=JSON)
        assert_problem(answer, 422, "invalid")


def test_half_a_character_is_no_text(owner: Owner) -> None:
    for field in ("name", "description"):
        content = b'{"name": "x", "%s": "\\ud800"}' % field.encode()
        assert_invalid(owner.client.post(PATH, content=content, headers=JSON), field)


def test_a_body_is_an_object(owner: Owner) -> None:
    assert_invalid(owner.client.post(PATH, json={}), "name")
    for content in (b"null", b"[]", b'"x"', b"1", b"NaN"):
        assert_problem(owner.client.post(PATH, content=content, headers=JSON), 422, "invalid")
    assert_problem(owner.client.post(PATH), 422, "invalid")


@pytest.mark.parametrize("content", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_a_body_that_can_t_be_read_is_a_bad_request(owner: Owner, content: bytes) -> None:
    assert_problem(owner.client.post(PATH, content=content, headers=JSON), 400, "bad_request")
    assert_problem(owner.client.put(f"{PATH}/{owner.key_id}", content=content, headers=JSON), 400, "bad_request")


def test_bodies_are_bounded_and_of_one_type(owner: Owner) -> None:
    assert_problem(owner.client.post(PATH, content=b"x" * (MEBIBYTE + 1), headers=JSON), 413, "too_large")
    chunks = (b"x" * 65536 for _ in range(17))
    assert_problem(owner.client.post(PATH, content=chunks, headers=JSON), 413, "too_large")
    for media in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = owner.client.post(PATH, content=b'{"name": "x"}', headers={"Content-Type": media})
        assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("key_id", BAD_IDS, ids=lambda value: repr(value)[:20])
def test_what_is_no_id_is_not_found(owner: Owner, key_id: str) -> None:
    path = f"{PATH}/{key_id}"
    for answer in (owner.client.get(path), owner.client.put(path, json={"name": "x"}), owner.client.delete(path)):
        assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize("key_id", ["999999999", "9223372036854775807"])
def test_a_key_that_never_was_is_not_found(keys: Service, owner: Owner, key_id: str) -> None:
    test_what_is_no_id_is_not_found(owner, key_id)
    assert keys.sql(f"SELECT count(*) FROM events WHERE stream = 'key-{key_id}'") == [(0,)]


@pytest.mark.parametrize("query", BAD_PAGES, ids=repr)
def test_pages_have_their_rules(owner: Owner, query: str) -> None:
    assert_invalid(owner.client.get(f"{PATH}?{query}"), query.split("=", maxsplit=1)[0])


def test_past_the_end_there_is_nothing(owner: Owner) -> None:
    answer = owner.client.get(PATH, params={"page": LAST_PAGE, "size": 100})
    assert (answer.status_code, answer.json()["api_keys"], answer.json()["total"]) == (200, [], 1)


def test_the_log_of_requests_is_not_paged_without_end(owner: Owner, usage: type[Usage]) -> None:
    for query in ("page=10001&size=1", "page=11&size=1000", "page=1&size=1001", "before=0", f"before={2**63}"):
        assert_problem(owner.client.get(f"{PATH}/{owner.key_id}/usage?{query}"), 422, "invalid")
    answer = owner.client.get(f"{PATH}/{owner.key_id}/usage?page=1001&size=10")
    assert "before" in answer.json()["detail"]
    assert usage.asked == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", PATH, {"GET", "HEAD", "POST"}),
        ("PATCH", f"{PATH}/1", {"DELETE", "GET", "HEAD", "PUT"}),
        ("POST", f"{PATH}/1", {"DELETE", "GET", "HEAD", "PUT"}),
        ("POST", f"{PATH}/1/usage", {"GET", "HEAD"}),
    ],
)
def test_other_methods_are_told_which_there_are(owner: Owner, method: str, path: str, allowed: set[str]) -> None:
    answer = owner.client.request(method, path, json={})
    assert_problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_others_keys_are_not_there(keys: Service, owner: Owner) -> None:
    with make_owner(keys).client as other:
        for answer in (
            other.get(f"{PATH}/{owner.key_id}"),
            other.get(f"{PATH}/{owner.key_id}/usage"),
            other.put(f"{PATH}/{owner.key_id}", json={"is_active": False}),
            other.delete(f"{PATH}/{owner.key_id}"),
        ):
            assert_problem(answer, 404, "not_found")
        assert owner.key_id not in [key["id"] for key in other.get(PATH).json()["api_keys"]]
    assert owner.client.get(f"{PATH}/{owner.key_id}").json()["is_active"] is True


def test_admin_acts_for_any_owner(owner: Owner, admin: Owner) -> None:
    key = admin.client.post(PATH, params={"owner": owner.id}, json={"name": "made for you"}).json()
    assert [shown["id"] for shown in owner.client.get(PATH).json()["api_keys"]] == [owner.key_id, key["id"]]
    assert admin.client.get(PATH, params={"owner": owner.id}).json() == owner.client.get(PATH).json()
    assert admin.client.put(f"{PATH}/{key['id']}", json={"is_active": False}).status_code == 200
    assert admin.client.delete(f"{PATH}/{key['id']}").status_code == 200
    assert_problem(admin.client.post(PATH, params={"owner": 10**9}, json={"name": "x"}), 404, "not_found")
    assert_problem(owner.client.get(PATH, params={"owner": admin.id}), 403, "permission_missing")
    assert_problem(owner.client.post(PATH, params={"owner": admin.id}, json={"name": "x"}), 403, "permission_missing")
    assert owner.client.get(PATH, params={"owner": owner.id}).status_code == 200
    for wrong in ("0", "-1", "x", str(2**63)):
        assert_invalid(owner.client.get(PATH, params={"owner": wrong}), "owner")


def test_a_key_is_never_beyond_its_creator(keys: Service, owner: Owner, admin: Owner) -> None:
    wanted: list[dict[str, Any]] = [
        {"permissions": ["admin"]},
        {"limits": {"minute": 101}},
        {"limits": {"minute": None}},
    ]
    for beyond in wanted:
        answer = owner.client.post(PATH, json={"name": "x"} | beyond)
        assert_problem(answer, 403, "permission_missing")
    expiring = admin.client.post(
        PATH, params={"owner": owner.id}, json={"name": "x", "permissions": ["usage:read"], "expires_at": _in(hours=1)}
    ).json()["id"]
    with keys.client(owner.id, expiring, "usage:read") as creator:
        made = creator.post(PATH, json={"name": "x"}).json()["id"]
        assert_problem(creator.post(PATH, json={"name": "x", "expires_at": _in(hours=2)}), 403, "permission_missing")
    expiry = "SELECT state->>'expires_at', state->'permissions' FROM keys WHERE id = {}"
    assert keys.sql(expiry.format(made)) == keys.sql(expiry.format(expiring))


def test_a_part_of_the_limits_leaves_the_rest_as_the_creator_s(keys: Service, owner: Owner) -> None:
    made = owner.client.post(PATH, json={"name": "x", "limits": {"minute": 50, "hour": 500, "day": 5000}}).json()["id"]
    with keys.client(owner.id, made) as creator:
        answer = creator.post(PATH, json={"name": "y", "limits": {"minute": 10}})
        assert answer.status_code == 201, answer.text
        assert_problem(creator.post(PATH, json={"name": "y", "limits": {"hour": 501}}), 403, "permission_missing")
    found = keys.sql(f"SELECT state->'limits' FROM keys WHERE id = {answer.json()['id']}")
    assert found == [({"minute": 10, "hour": 500, "day": 5000},)]


def test_a_key_that_is_no_longer_good_commands_nothing(keys: Service, owner: Owner) -> None:
    """As the edge says it: an identity token outlives its key by up to a minute."""
    other = owner.client.post(PATH, json={"name": "other"}).json()["id"]
    with keys.client(owner.id, other) as deactivated:
        owner.client.put(f"{PATH}/{other}", json={"is_active": False})
        assert_problem(deactivated.post(PATH, json={"name": "x"}), 403, "key_inactive")
        assert_problem(deactivated.put(f"{PATH}/{other}", json={"is_active": True}), 403, "key_inactive")
        owner.client.delete(f"{PATH}/{other}")
        for answer in (deactivated.post(PATH, json={"name": "x"}), deactivated.delete(f"{PATH}/{owner.key_id}")):
            assert_problem(answer, 401, "key_invalid")
            assert answer.headers["www-authenticate"] == "ApiKey"


def test_a_suspended_owner_s_commands_are_refused(keys: Service, owner: Owner, admin: Owner) -> None:
    before = keys.sql("SELECT count(*) FROM events")
    keys.sql(f"UPDATE owners SET status = 'suspended' WHERE id = {owner.id}")
    path = f"{PATH}/{owner.key_id}"
    for answer in (
        owner.client.post(PATH, json={"name": "x"}),
        owner.client.put(path, json={"name": "x"}),
        owner.client.delete(path),
    ):
        assert_problem(answer, 403, "key_inactive")
    answer = admin.client.post(PATH, params={"owner": owner.id}, json={"name": "x"})
    assert "suspended" in str(assert_problem(answer, 409, "conflict")["detail"])
    with pytest.raises(Conflict, match="suspended"):
        make_key(keys, owner.id)
    assert keys.sql("SELECT count(*) FROM events") == before
    assert admin.client.put(path, json={"is_active": False}).status_code == 200


def test_an_owner_has_so_many_keys_and_no_more(keys: Service, owner: Owner) -> None:
    keys.sql(f"UPDATE owners SET max_keys = 6 WHERE id = {owner.id}")
    with ThreadPoolExecutor(8) as threads:
        made = [threads.submit(owner.client.post, PATH, json={"name": "x"}) for _ in range(12)]
    answers = [each.result() for each in made]
    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [409] * 7
    assert_problem(owner.client.post(PATH, json={"name": "x"}), 409, "conflict")
    assert owner.client.get(PATH).json()["total"] == 6
    owner.client.delete(f"{PATH}/{answers[0].json().get('id', 0)}")


def test_a_key_s_past_does_not_make_its_commands_dearer(keys: Service, owner: Owner) -> None:
    """A stream may grow for ever, and its key can be deactivated all the same: nobody reads its events."""
    path = f"{PATH}/{owner.key_id}"
    with _without(keys, "SELECT", "events"):
        assert owner.client.put(path, json={"name": "x", "is_active": False}).json()["is_active"] is False
    last = f"SELECT type, version FROM events WHERE stream = 'key-{owner.key_id}' ORDER BY version DESC LIMIT 1"
    assert keys.sql(last) == [("key.deactivated", 3)]


def test_parallel_changes_lose_nothing(keys: Service, owner: Owner) -> None:
    path = f"{PATH}/{owner.key_id}"
    with ThreadPoolExecutor(8) as threads:
        made = [threads.submit(owner.client.put, path, json={"name": f"name {number}"}) for number in range(24)]
    answers = [each.result() for each in made]
    done = [answer.status_code for answer in answers].count(200)
    assert {answer.status_code for answer in answers} <= {200, 409}
    stream = f"stream = 'key-{owner.key_id}'"
    assert keys.sql(f"SELECT count(*), max(version) FROM events WHERE {stream}") == [(done + 1, done + 1)]


@contextmanager
def _without(keys: Service, privilege: str, table: str) -> Iterator[None]:
    role = keys.sql("SELECT current_user")[0][0]
    keys.sql(f"REVOKE {privilege} ON {table} FROM {role}")
    try:
        yield
    finally:
        keys.sql(f"GRANT {privilege} ON {table} TO {role}")


@pytest.mark.parametrize(
    ("privilege", "table", "method", "path"),
    [
        ("INSERT", "events", "POST", PATH),
        ("UPDATE", "log_head", "PUT", f"{PATH}/{{}}"),
        ("SELECT", "keys", "GET", PATH),
        ("SELECT", "keys", "GET", f"{PATH}/{{}}"),
        ("SELECT", "owners", "DELETE", f"{PATH}/{{}}"),
    ],
)
def test_an_error_within_stays_within(
    keys: Service, owner: Owner, privilege: str, table: str, method: str, path: str
) -> None:
    url = path.format(owner.key_id)
    body = {"name": "another"} if method in ("POST", "PUT") else None
    before = keys.sql("SELECT count(*) FROM events")
    with _without(keys, privilege, table):
        answer = owner.client.request(method, url, json=body)
    assert_problem(answer, 500, "internal")
    assert answer.json() == {
        "type": "about:blank",
        "title": "Internal server error",
        "status": 500,
        "code": "internal",
        "request_id": REQUEST_ID,
    }
    logged = [line for line in keys.log("api").splitlines() if "permission denied" in line]
    assert logged
    assert REQUEST_ID in logged[-1]
    assert keys.sql("SELECT count(*) FROM events") == before
    assert owner.client.request(method, url, json=body).status_code in (200, 201)


def test_without_a_database_callers_are_told_to_come_again(servers: Servers, keys: Service, owner: Owner) -> None:
    path = f"{PATH}/{owner.key_id}"
    with servers.processes.stopped("postgres"):
        for answer in (
            owner.client.get(PATH),
            owner.client.get(path),
            owner.client.post(PATH, json={"name": "x"}),
            owner.client.put(path, json={"name": "x"}),
            owner.client.delete(path),
        ):
            assert_problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
    eventually_sync(lambda: owner.client.get(PATH).status_code == 200, 20)
    assert owner.client.put(path, json={"name": "back again"}).json()["name"] == "back again"
    eventually_sync(lambda: keys.sql("SELECT log_head.position = relay.position FROM log_head, relay") == [(True,)])


def test_a_log_that_needs_a_repair_takes_no_commands(keys: Service, owner: Owner) -> None:
    keys.sql("UPDATE log_head SET repair_needed = 'Kafka holds position 9, the log ends at 1'")
    try:
        answer = owner.client.put(f"{PATH}/{owner.key_id}", json={"name": "x"})
        assert_problem(answer, 503, "repair_needed")
        assert answer.headers["retry-after"] == "60"
        assert owner.client.get(PATH).status_code == 200
    finally:
        keys.sql("UPDATE log_head SET repair_needed = NULL")
