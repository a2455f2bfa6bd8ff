"""The dashboard's rows and figures."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from services.stats.domain import Calls, Key, Ticket, apply_key, apply_ticket, avg_response_time, count, success_rate
from shared.events import EventData
from shared.events.keys import (
    KeyCreated,
    KeyDeactivated,
    KeyDeleted,
    KeyReactivated,
    KeyRevoked,
    KeyRotated,
    KeyUpdated,
    Limits,
)
from shared.events.requests import Request, RequestEvent
from shared.events.tickets import (
    TicketClosed,
    TicketOpened,
    TicketRenamed,
    TicketReopened,
    TicketReplied,
    TicketResolved,
    TicketStatus,
)

NOON = datetime(2024, 3, 21, 12, tzinfo=UTC)
CREATED = KeyCreated(
    id=7,
    owner_id=3,
    name="My API Key",
    description=None,
    permissions=(),
    limits=Limits(),
    expires_at=NOON,
    addresses=(),
    prefix="kl_live_",
    last_four="wxyz",
    created_at=NOON,
)
OPENED = TicketOpened(id=1, owner_id=3, subject="Ticket Subject", body=None, created_at=NOON)


def key_after(*events: EventData) -> Key | None:
    key = None
    for event in (CREATED, *events):
        key = apply_key(key, event)
    return key


def ticket_after(*events: EventData) -> Ticket | None:
    ticket = None
    for event in (OPENED, *events):
        ticket = apply_ticket(ticket, event)
    return ticket


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "active"),
        ([KeyDeactivated()], "inactive"),
        ([KeyDeactivated(), KeyReactivated()], "active"),
        ([KeyRotated(prefix="kl_live_", last_four="abcd", old_valid_until=NOON)], "active"),
        ([KeyRevoked()], "revoked"),
        ([KeyRevoked(), KeyDeleted()], "deleted"),
    ],
)
def test_key_status(events: list[EventData], status: str) -> None:
    assert key_after(*events) == Key(7, 3, "My API Key", status, NOON)


def test_key_name_is_the_last_one() -> None:
    assert key_after(KeyUpdated(name="Updated API Key", description=None)) == Key(
        7, 3, "Updated API Key", "active", NOON
    )


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "open"),
        ([TicketReplied(id=1, body="?", created_at=NOON)], "open"),
        ([TicketResolved()], "resolved"),
        ([TicketResolved(), TicketClosed()], "closed"),
        ([TicketResolved(), TicketReopened()], "open"),
    ],
)
def test_ticket_status(events: list[EventData], status: TicketStatus) -> None:
    assert ticket_after(*events) == Ticket(1, 3, "Ticket Subject", status, NOON)


def test_ticket_subject_is_the_last_one() -> None:
    assert ticket_after(TicketRenamed(subject="Better")) == Ticket(1, 3, "Better", "open", NOON)


def test_events_of_something_unknown_change_nothing() -> None:
    assert apply_key(None, KeyDeleted()) is None
    assert apply_ticket(None, TicketClosed()) is None


def call(status: int, seconds: float, *, decision: str = "allowed", via: str = "proxy") -> RequestEvent:
    data = Request(
        0, -1, "e", key_id=7, owner_id=3, status_code=status, response_time=seconds, decision=decision, via=via
    )
    return RequestEvent(id="", source="", type="", time=NOON, data=data)


def test_only_proxied_calls_have_an_outcome_and_a_time() -> None:
    found: dict[int, Calls] = {}
    count(
        found,
        [
            call(200, 0.1),
            call(399, 0.2),
            call(400, 0.3),
            call(499, 0.0),
            call(200, 9.0, via="authz"),
            call(429, 9.0, decision="rate_limited"),
            call(200, 9.0, via="session"),
        ],
    )
    assert found == {7: Calls(3, calls=5, proxied=4, succeeded=2, response_microseconds=600_000, last_used=NOON)}


def test_refusals_alone_leave_no_trace() -> None:
    found: dict[int, Calls] = {}
    count(found, [call(403, 0.1, decision="forbidden")])
    assert found == {}


@pytest.mark.parametrize(("succeeded", "proxied", "rate"), [(0, 0, 0.0), (191, 200, 95.5), (2, 3, 66.7), (3, 3, 100.0)])
def test_success_rate(succeeded: int, proxied: int, rate: float) -> None:
    assert success_rate(succeeded, proxied) == rate


@pytest.mark.parametrize(
    ("microseconds", "proxied", "seconds"),
    [(0, 0, 0.0), (300_000, 2, 0.15), (1, 3, 0.0), (2, 3, 0.000001), (10, 3, 0.000003)],
)
def test_avg_response_time(microseconds: int, proxied: int, seconds: float) -> None:
    assert avg_response_time(Decimal(microseconds), proxied) == seconds
