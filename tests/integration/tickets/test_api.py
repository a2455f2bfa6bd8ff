"""The tickets API as real processes on real PostgreSQL and Kafka."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx2
import pytest

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
from tests.support.service import Service, service
from tests.support.stack import Servers

PATH = "/api/v1/tickets"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_owners = count(1)


@pytest.fixture(scope="module")
def tickets(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service("tickets", servers, tmp_path_factory.mktemp("tickets"), worker=False) as running:
        yield running


@pytest.fixture
def caller(tickets: Service) -> Iterator[httpx2.Client]:
    """An owner without tickets."""
    owner = next(_owners)
    with tickets.client(owner, 100 + owner) as client:
        yield client


def _open(caller: httpx2.Client, subject: str = "Ticket Subject", **fields: Any) -> dict[str, Any]:
    answer = caller.post(PATH, json={"subject": subject, **fields})
    assert answer.status_code == 201, answer.text
    opened: dict[str, Any] = answer.json()
    return opened


def test_a_ticket_is_opened(caller: httpx2.Client) -> None:
    answer = caller.post(PATH, json={"subject": "  Ticket Subject ", "body": "It does\nnot work."})
    ticket = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{PATH}/{ticket['id']}"
    assert list(ticket) == ["id", "subject", "status", "created_at"]
    assert (ticket["subject"], ticket["status"]) == ("Ticket Subject", "open")
    assert TIME.fullmatch(ticket["created_at"])
    one = caller.get(answer.headers["location"]).json()
    assert one == ticket | {"replies": [{"id": 1, "body": "It does\nnot work.", "created_at": ticket["created_at"]}]}


def test_a_ticket_without_a_body_has_no_replies(caller: httpx2.Client) -> None:
    for opened in (_open(caller), _open(caller, body=None)):
        assert caller.get(f"{PATH}/{opened['id']}").json()["replies"] == []


def test_replies_are_numbered_within_the_ticket(caller: httpx2.Client) -> None:
    ticket = _open(caller, body="one")
    answer = caller.post(f"{PATH}/{ticket['id']}/replies", json={"body": "two"})
    assert answer.status_code == 201
    assert answer.json() | {"created_at": ""} == {"id": 2, "body": "two", "created_at": ""}
    assert TIME.fullmatch(answer.json()["created_at"])
    caller.post(f"{PATH}/{ticket['id']}/resolve")
    assert caller.post(f"{PATH}/{ticket['id']}/replies", json={"body": "three"}).json()["id"] == 3
    shown = caller.get(f"{PATH}/{ticket['id']}").json()
    assert [reply["body"] for reply in shown["replies"]] == ["one", "two", "three"]


def test_a_ticket_lives(caller: httpx2.Client) -> None:
    ticket = _open(caller)
    path = f"{PATH}/{ticket['id']}"
    for command, status in [
        ("resolve", "resolved"),
        ("reopen", "open"),
        ("close", "closed"),
        ("reopen", "open"),
        ("resolve", "resolved"),
        ("close", "closed"),
    ]:
        answer = caller.post(f"{path}/{command}")
        assert (answer.status_code, answer.json()) == (200, ticket | {"status": status})
        assert caller.get(path).json()["status"] == status


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ([], "reopen"),
        (["resolve"], "resolve"),
        (["close"], "close"),
        (["close"], "resolve"),
        (["close"], "replies"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_an_illegal_change_is_a_conflict(
    tickets: Service, caller: httpx2.Client, before: list[str], command: str
) -> None:
    path = f"{PATH}/{_open(caller)['id']}"
    for step in before:
        caller.post(f"{path}/{step}")
    events = tickets.sql("SELECT count(*) FROM events")
    answer = caller.post(f"{path}/{command}", json={"body": "x"} if command == "replies" else None)
    assert_problem(answer, 409, "conflict")
    assert tickets.sql("SELECT count(*) FROM events") == events


def test_the_subject_is_changed(tickets: Service, caller: httpx2.Client) -> None:
    ticket = _open(caller)
    path = f"{PATH}/{ticket['id']}"
    answer = caller.put(path, json={"subject": "Another"})
    assert (answer.status_code, answer.json()) == (200, ticket | {"subject": "Another"})
    events = tickets.sql("SELECT count(*) FROM events")
    unchanged: list[dict[str, str]] = [{"subject": "Another"}, {"subject": " Another"}, {}]
    for same in unchanged:
        assert caller.put(path, json=same).json() == ticket | {"subject": "Another"}
    assert tickets.sql("SELECT count(*) FROM events") == events
    caller.post(f"{path}/close")
    assert_problem(caller.put(path, json={"subject": "Too late"}), 409, "conflict")


def test_lists_are_by_id_and_by_page(caller: httpx2.Client) -> None:
    opened = [_open(caller, f"number {number}") for number in range(12)]
    first = caller.get(PATH).json()
    assert first == {"tickets": opened[:10], "total": 12, "page": 1, "size": 10}
    assert caller.get(PATH, params={"page": 2}).json() == first | {"tickets": opened[10:], "page": 2}
    assert caller.get(PATH, params={"page": 4, "size": 3}).json()["tickets"] == opened[9:]
    assert caller.get(PATH, params={"page": 5, "size": 3}).json()["tickets"] == []
    answer = caller.get(PATH, params={"page": LAST_PAGE, "size": 100})
    assert (answer.status_code, answer.json()["tickets"], answer.json()["total"]) == (200, [], 12)


def test_lists_are_of_one_status(caller: httpx2.Client) -> None:
    ids = [_open(caller)["id"] for _ in range(4)]
    caller.post(f"{PATH}/{ids[0]}/resolve")
    caller.post(f"{PATH}/{ids[2]}/close")

    def of(status: str) -> tuple[list[int], int]:
        found = caller.get(PATH, params={"status": status}).json()
        return [ticket["id"] for ticket in found["tickets"]], found["total"]

    assert of("resolved") == ([ids[0]], 1)
    assert of("closed") == ([ids[2]], 1)
    assert of("open") == ([ids[1], ids[3]], 2)
    assert_invalid(caller.get(PATH, params={"status": "gone"}), "status")


def test_others_tickets_are_not_there(tickets: Service, caller: httpx2.Client) -> None:
    path = f"{PATH}/{_open(caller)['id']}"
    with tickets.client(999_999, 1) as other:
        for answer in (
            other.get(path),
            other.put(path, json={"subject": "x"}),
            other.post(f"{path}/replies", json={"body": "x"}),
            *(other.post(f"{path}/{command}") for command in ("resolve", "reopen", "close")),
        ):
            assert_problem(answer, 404, "not_found")
        assert other.get(PATH).json()["total"] == 0
    assert caller.get(path).json()["status"] == "open"


def test_admin_acts_for_any_owner(tickets: Service, caller: httpx2.Client) -> None:
    ticket = _open(caller)
    with tickets.client(888_888, 1, "admin") as admin:
        assert admin.get(f"{PATH}/{ticket['id']}").json()["subject"] == ticket["subject"]
        assert admin.post(f"{PATH}/{ticket['id']}/resolve").status_code == 200
        assert admin.get(PATH).json()["total"] == 0
        opened = admin.post(PATH, params={"owner": 777_777}, json={"subject": "x"}).json()
        assert admin.get(PATH, params={"owner": 777_777}).json()["tickets"] == [opened]
    with tickets.client(777_777, 2) as owner:
        assert owner.get(f"{PATH}/{opened['id']}").status_code == 200
        assert owner.get(PATH, params={"owner": 777_777}).status_code == 200
    assert_problem(caller.get(PATH, params={"owner": 777_777}), 403, "permission_missing")
    for owner in ("0", "-1", "x", str(2**63)):
        assert_invalid(caller.get(PATH, params={"owner": owner}), "owner")


@pytest.mark.parametrize(
    "subject",
    ["", "   ", "x" * 201, "two\nlines", "\x00", "a\x7fb", "a\x85b", 5, True, None, ["x"], {}],
    ids=repr,
)
def test_a_subject_has_its_rules(caller: httpx2.Client, subject: object) -> None:
    assert_invalid(caller.post(PATH, json={"subject": subject}), "subject")


def test_a_subject_may_be_long_and_foreign(caller: httpx2.Client) -> None:
    for subject in ("x" * 200, " " * 50 + "ü" * 200 + "\n", "🔑", "\u202e"):
        assert _open(caller, subject)["subject"] == subject.strip()


@pytest.mark.parametrize("body", ["", "x" * 10_001, "a\x00b", 5, []], ids=lambda value: repr(value)[:20])
def test_a_body_has_its_rules(caller: httpx2.Client, body: object) -> None:
    assert_invalid(caller.post(PATH, json={"subject": "x", "body": body}), "body")
    path = f"{PATH}/{_open(caller)['id']}/replies"
    assert_invalid(caller.post(path, json={"body": body}), "body")


def test_a_body_may_be_long_and_of_many_lines(caller: httpx2.Client) -> None:
    body = ("🔑\r\n\t" + "x" * 10_000)[:10_000]
    path = f"{PATH}/{_open(caller, body=body)['id']}"
    assert caller.get(path).json()["replies"][0]["body"] == body


def test_half_a_character_is_no_text(caller: httpx2.Client) -> None:
    for field in ("subject", "body"):
        content = b'{"subject": "x", "%s": "\\ud800"}' % field.encode()
        assert_invalid(caller.post(PATH, content=content, headers=JSON), field)


def test_fields_that_nobody_knows_are_refused(caller: httpx2.Client) -> None:
    path = f"{PATH}/{_open(caller)['id']}"
    assert_invalid(caller.post(PATH, json={"subject": "x", "status": "closed"}), "status")
    assert_invalid(caller.put(path, json={"status": "closed"}), "status")
    assert_invalid(caller.post(f"{path}/replies", json={"body": "x", "id": 9}), "id")
    answer = caller.post(PATH, content=b'{"subject": "x", "\\ud800": 1}', headers=JSON)
    assert_problem(answer, 422, "invalid")


def test_required_fields_and_objects(caller: httpx2.Client) -> None:
    path = f"{PATH}/{_open(caller)['id']}"
    assert_invalid(caller.post(PATH, json={}), "subject")
    assert_invalid(caller.post(f"{path}/replies", json={}), "body")
    assert_problem(caller.put(path, json={"subject": None}), 422, "invalid")
    for content in (b"null", b"[]", b'"x"', b"1"):
        assert_problem(caller.post(PATH, content=content, headers=JSON), 422, "invalid")
    assert_problem(caller.post(PATH), 422, "invalid")


@pytest.mark.parametrize("content", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_a_body_that_can_t_be_read_is_a_bad_request(caller: httpx2.Client, content: bytes) -> None:
    assert_problem(caller.post(PATH, content=content, headers=JSON), 400, "bad_request")


@pytest.mark.parametrize("ticket_id", BAD_IDS, ids=lambda value: repr(value)[:20])
def test_what_is_no_id_is_not_found(caller: httpx2.Client, ticket_id: str) -> None:
    assert_problem(caller.get(f"{PATH}/{ticket_id}"), 404, "not_found")
    assert_problem(caller.put(f"{PATH}/{ticket_id}", json={"subject": "x"}), 404, "not_found")


@pytest.mark.parametrize("query", BAD_PAGES, ids=repr)
def test_pages_have_their_rules(caller: httpx2.Client, query: str) -> None:
    assert_invalid(caller.get(f"{PATH}?{query}"), query.split("=", maxsplit=1)[0])


def test_bodies_are_bounded_and_of_one_type(caller: httpx2.Client) -> None:
    assert_problem(caller.post(PATH, content=b"x" * (MEBIBYTE + 1), headers=JSON), 413, "too_large")
    chunks = (b"x" * 65536 for _ in range(17))
    assert_problem(caller.post(PATH, content=chunks, headers=JSON), 413, "too_large")
    for media in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = caller.post(PATH, content=b'{"subject": "x"}', headers={"Content-Type": media})
        assert_problem(answer, 415, "unsupported_media_type")
    accepted = caller.post(
        PATH, content=b'{"subject": "x"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert accepted.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", PATH, {"GET", "HEAD", "POST"}),
        ("PUT", PATH, {"GET", "HEAD", "POST"}),
        ("DELETE", f"{PATH}/1", {"GET", "HEAD", "PUT"}),
        ("GET", f"{PATH}/1/resolve", {"POST"}),
    ],
)
def test_other_methods_are_told_which_there_are(
    caller: httpx2.Client, method: str, path: str, allowed: set[str]
) -> None:
    answer = caller.request(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_other_paths_are_not_found(caller: httpx2.Client) -> None:
    for path in ("/", "/api/v1/ticket", f"{PATH}/1/delete", f"{PATH}/", "/docs"):
        assert_problem(caller.get(path), 404, "not_found")


def test_who_does_not_say_who_it_is_gets_nothing(tickets: Service) -> None:
    good = tickets.signer.token
    refused = [
        "",
        "x",
        good(1, 1)[:-2],
        good(1, 1, iss="else"),
        good(1, 1, aud="route:else"),
        good(1, 1, exp=1),
        good(1, 1, owner_id=None),
        good(1, 1, permissions=None),
        "eyJhbGciOiJub25lIn0.eyJvd25lcl9pZCI6MX0.",
    ]
    with tickets.client(1, 1) as client:
        for token in refused:
            answer = client.get(PATH, headers={"Keyledger-Identity": token})
            assert_problem(answer, 401, "key_invalid")
            assert answer.headers["www-authenticate"] == "ApiKey"


def test_parallel_replies_are_all_kept(tickets: Service, caller: httpx2.Client) -> None:
    path = f"{PATH}/{_open(caller)['id']}"

    def reply(number: int) -> int:
        return caller.post(f"{path}/replies", json={"body": str(number)}).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(reply, range(24)))
    assert set(statuses) <= {201, 409}
    shown = caller.get(path).json()["replies"]
    assert [answer["id"] for answer in shown] == list(range(1, statuses.count(201) + 1))
    assert len({answer["body"] for answer in shown}) == len(shown)


def test_the_events_tell_who_did_it_in_which_request(tickets: Service, caller: httpx2.Client) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    caller.headers |= {"X-Correlation-ID": "order-66", "traceparent": trace}
    ticket = _open(caller, body="x")
    found = tickets.sql(f"SELECT type, private, meta FROM events WHERE stream = 'ticket-{ticket['id']}'")
    (kind, private, meta) = found[0]
    request_id = caller.headers["x-request-id"]
    assert (kind, private) == ("ticket.opened", None)
    assert re.fullmatch(r"key-\d+", meta.pop("actor"))
    ids = {"request_id": request_id, "causation_id": request_id, "correlation_id": "order-66", "traceparent": trace}
    assert meta == ids
