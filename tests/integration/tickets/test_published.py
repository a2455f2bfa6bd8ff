"""What other programs read of the tickets service, and that it outlives its database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shared.events.topics import TICKET_EVENTS
from tests.support.eventually import eventually_sync
from tests.support.refusals import assert_problem
from tests.support.service import Service, service
from tests.support.stack import Servers
from tests.support.topics import decoded, read_topic

PATH = "/api/v1/tickets"
SCHEMAS = Path(__file__).parents[3] / "schemas"


@pytest.fixture(scope="module")
def tickets(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service("tickets", servers, tmp_path_factory.mktemp("tickets")) as running:
        yield running


def _events(tickets: Service, stream: str) -> list[dict[str, Any]]:
    """The stream's events; what a relay sends again when its checkpoint failed is dropped by its version."""
    found = asyncio.run(read_topic(tickets.kafka, TICKET_EVENTS.name))
    events = [event for records in found.values() for event in decoded(records) if event["subject"] == stream]
    return [event for number, event in enumerate(events) if event["streamversion"] > _version(events[:number])]


def _version(events: list[dict[str, Any]]) -> int:
    """The version up to which these events tell the stream."""
    return max((event["streamversion"] for event in events), default=0)


def test_a_ticket_s_life_is_published(tickets: Service) -> None:
    with tickets.client(3, 7) as caller:
        ticket = caller.post(PATH, json={"subject": "one", "body": "help"}).json()
        path, stream = f"{PATH}/{ticket['id']}", f"ticket-{ticket['id']}"
        caller.put(path, json={"subject": "two"})
        reply = caller.post(f"{path}/replies", json={"body": "more"}).json()
        for command in ("resolve", "reopen", "close"):
            caller.post(f"{path}/{command}")
    eventually_sync(lambda: len(_events(tickets, stream)) == 6)
    events = _events(tickets, stream)
    assert [event["type"].removeprefix("ticket.") for event in events] == [
        "opened",
        "renamed",
        "replied",
        "resolved",
        "reopened",
        "closed",
    ]
    assert [event["streamversion"] for event in events] == [1, 2, 3, 4, 5, 6]
    for event in events:
        schema = SCHEMAS / f"{event['type']}.v{event['schemaversion']}.json"
        Draft202012Validator(json.loads(schema.read_text())).validate(event)
        assert (event["source"], event["actor"], event["epoch"]) == ("keyledger/tickets", "key-7", 1)
    opened, replied = events[0]["data"], events[2]["data"]
    assert {"id": ticket["id"], "owner_id": 3, "subject": "one", "body": "help"}.items() <= opened.items()
    assert opened["created_at"][:19] + "Z" == ticket["created_at"]
    assert (replied["id"], replied["body"]) == (reply["id"], "more")


def test_without_a_database_callers_are_told_to_come_again(servers: Servers, tickets: Service) -> None:
    with tickets.client(3, 7) as caller:
        path = f"{PATH}/{caller.post(PATH, json={'subject': 'one'}).json()['id']}"
        with servers.processes.stopped("postgres"):
            for answer in (caller.get(PATH), caller.post(PATH, json={"subject": "x"}), caller.post(f"{path}/close")):
                assert_problem(answer, 503, "unavailable")
                assert int(answer.headers["retry-after"]) >= 1
        eventually_sync(lambda: caller.get(PATH).status_code == 200, 20)
        assert caller.post(f"{path}/close").json()["status"] == "closed"
        stream = path.replace(f"{PATH}/", "ticket-")
        eventually_sync(lambda: [event["streamversion"] for event in _events(tickets, stream)] == [1, 2])


def test_an_error_within_stays_within(tickets: Service) -> None:
    role = tickets.sql("SELECT current_user")[0][0]
    tickets.sql(f"REVOKE INSERT ON replies FROM {role}")
    try:
        with tickets.client(3, 7) as caller:
            answer = caller.post(PATH, json={"subject": "one", "body": "help"})
    finally:
        tickets.sql(f"GRANT INSERT ON replies TO {role}")
    assert "detail" not in assert_problem(answer, 500, "internal")
    assert "replies" not in answer.text
    assert "permission denied" in tickets.log("api")
