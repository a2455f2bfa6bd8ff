"""The life of a ticket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tickets import domain
from services.tickets.domain import MAX_REPLIES, Reply, Ticket, apply_ticket
from shared.errors import Conflict, NotFound
from shared.events import EventData

NOW = datetime(2024, 3, 20, 12, tzinfo=UTC)
Command = Callable[[Ticket], list[EventData]]

COMMANDS: dict[str, Command] = {
    "rename": lambda ticket: domain.rename(ticket, "another"),
    "rename back": lambda ticket: domain.rename(ticket, "first"),
    "reply": lambda ticket: [domain.reply(ticket, "words", now=NOW)],
    "resolve": lambda ticket: [domain.resolve(ticket)],
    "reopen": lambda ticket: [domain.reopen(ticket)],
    "close": lambda ticket: [domain.close(ticket)],
}
LEGAL = {
    ("open", "resolve"): "resolved",
    ("open", "close"): "closed",
    ("resolved", "reopen"): "open",
    ("resolved", "close"): "closed",
    ("closed", "reopen"): "open",
}


def _opened(body: str | None = None) -> Ticket:
    return apply_ticket(None, domain.open_ticket(1, 3, "first", body, now=NOW))


def _after(ticket: Ticket, events: list[EventData]) -> Ticket:
    for event in events:
        ticket = apply_ticket(ticket, event)
    return ticket


@pytest.mark.parametrize("status", ["open", "resolved", "closed"])
@pytest.mark.parametrize("command", ["resolve", "reopen", "close"])
def test_only_legal_changes_of_status_are_carried_out(status: domain.TicketStatus, command: str) -> None:
    ticket = replace(_opened(), status=status)
    if (status, command) in LEGAL:
        assert _after(ticket, COMMANDS[command](ticket)).status == LEGAL[status, command]
    else:
        with pytest.raises(Conflict, match=status):
            COMMANDS[command](ticket)


def test_a_closed_ticket_is_left_alone() -> None:
    ticket = replace(_opened(), status="closed")
    for command in ("rename", "reply"):
        with pytest.raises(Conflict):
            COMMANDS[command](ticket)
    assert domain.rename(ticket, ticket.subject) == []


def test_the_opening_s_body_is_the_first_reply() -> None:
    assert _opened("help").replies == (Reply(1, "help", NOW),)
    assert _opened().replies == ()
    assert domain.reply(_opened("help"), "more", now=NOW).id == 2
    assert domain.reply(_opened(), "more", now=NOW).id == 1


def test_a_ticket_has_an_end_of_replies() -> None:
    full = replace(_opened(), replies=tuple(Reply(number + 1, "x", NOW) for number in range(MAX_REPLIES)))
    with pytest.raises(Conflict, match=str(MAX_REPLIES)):
        domain.reply(full, "one more", now=NOW)


def test_another_owner_s_ticket_is_not_there() -> None:
    ticket = _opened()
    assert domain.visible(ticket, 3, admin=False) is ticket
    assert domain.visible(ticket, 4, admin=True) is ticket
    for found in (ticket, None):
        with pytest.raises(NotFound):
            domain.visible(found, 4, admin=False)
    with pytest.raises(NotFound):
        domain.visible(None, 4, admin=True)


@given(st.lists(st.sampled_from(sorted(COMMANDS))), st.none() | st.just("help"))
def test_whatever_is_asked_the_log_tells_the_state(asked: list[str], body: str | None) -> None:
    """Replay gives the state; events change something; replies are numbered without gaps and never change."""
    log: list[EventData] = [domain.open_ticket(1, 3, "first", body, now=NOW)]
    ticket = apply_ticket(None, log[0])
    for name in asked:
        try:
            events = COMMANDS[name](ticket)
        except Conflict:
            continue
        after = _after(ticket, events)
        assert (after != ticket) == bool(events)
        assert after.replies[: len(ticket.replies)] == ticket.replies
        assert (after.id, after.owner_id, after.created_at) == (1, 3, NOW)
        log += events
        ticket = after
    assert _after(apply_ticket(None, log[0]), log[1:]) == ticket
    assert [reply.id for reply in ticket.replies] == list(range(1, len(ticket.replies) + 1))


def test_an_event_that_is_not_known_changes_nothing() -> None:
    class Later(EventData):
        TYPE = "ticket.later"

    assert apply_ticket(_opened(), Later()) == _opened()


def test_a_reply_has_the_time_that_it_was_given() -> None:
    later = NOW + timedelta(hours=1)
    assert domain.reply(_opened(), "words", now=later).created_at == later
