"""The life of a ticket."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tickets.domain import (
    MAX_REPLIES,
    By,
    CloseTicket,
    Command,
    OpenTicket,
    RenameTicket,
    ReopenTicket,
    ReplyToTicket,
    ResolveTicket,
    Ticket,
    apply,
    decide,
    visible,
)
from shared.errors import Conflict, NotFound
from shared.events import EventData
from shared.events.tickets import TicketReplied, TicketStatus

NOW = datetime(2024, 3, 20, 12, tzinfo=UTC)
BY = By(3)

COMMANDS: dict[str, RenameTicket | ReplyToTicket | ResolveTicket | ReopenTicket | CloseTicket] = {
    "rename": RenameTicket(BY, "another"),
    "rename back": RenameTicket(BY, "first"),
    "rename to nothing": RenameTicket(BY, None),
    "reply": ReplyToTicket(BY, "words", NOW),
    "resolve": ResolveTicket(BY),
    "reopen": ReopenTicket(BY),
    "close": CloseTicket(BY),
}
LEGAL = {
    ("open", "resolve"): "resolved",
    ("open", "close"): "closed",
    ("resolved", "reopen"): "open",
    ("resolved", "close"): "closed",
    ("closed", "reopen"): "open",
}


def _open(body: str | None = None) -> OpenTicket:
    return OpenTicket(1, 3, "first", body, NOW)


def _opened(body: str | None = None) -> Ticket:
    return _after(None, _events(_open(body), None))


def _events(command: Command, ticket: Ticket | None) -> list[EventData]:
    return [event.data for event in decide(command, ticket)]


def _after(ticket: Ticket | None, events: list[EventData]) -> Ticket:
    for event in events:
        ticket = apply(ticket, event, None)
    assert ticket is not None
    return ticket


@pytest.mark.parametrize("status", ["open", "resolved", "closed"])
@pytest.mark.parametrize("command", ["resolve", "reopen", "close"])
def test_only_legal_changes_of_status_are_carried_out(status: TicketStatus, command: str) -> None:
    ticket = replace(_opened(), status=status)
    if (status, command) in LEGAL:
        assert _after(ticket, _events(COMMANDS[command], ticket)).status == LEGAL[status, command]
    else:
        with pytest.raises(Conflict, match=status):
            decide(COMMANDS[command], ticket)


def test_a_closed_ticket_is_left_alone() -> None:
    ticket = replace(_opened(), status="closed")
    for command in ("rename", "reply"):
        with pytest.raises(Conflict):
            decide(COMMANDS[command], ticket)
    assert decide(COMMANDS["rename back"], ticket) == decide(COMMANDS["rename to nothing"], ticket) == []


def test_a_ticket_that_was_opened_is_not_opened_again() -> None:
    assert decide(_open(), _opened()) == []


def test_the_opening_s_body_is_the_first_reply() -> None:
    assert (_opened("help").replies, _opened().replies) == (1, 0)
    for ticket, number in ((_opened("help"), 2), (_opened(), 1)):
        [event] = _events(COMMANDS["reply"], ticket)
        assert event == TicketReplied(id=number, body="words", created_at=NOW)


def test_a_ticket_has_an_end_of_replies() -> None:
    full = replace(_opened(), replies=MAX_REPLIES)
    with pytest.raises(Conflict, match=str(MAX_REPLIES)):
        decide(COMMANDS["reply"], full)


def test_another_owner_s_ticket_is_not_there() -> None:
    ticket = _opened()
    assert visible(ticket, BY) is visible(ticket, By(4, admin=True)) is ticket
    for found, by in ((ticket, By(4)), (None, By(4)), (None, By(4, admin=True))):
        with pytest.raises(NotFound):
            visible(found, by)
        for command in COMMANDS.values():
            with pytest.raises(NotFound):
                decide(replace(command, by=by), found)


@given(st.lists(st.sampled_from(sorted(COMMANDS))), st.none() | st.just("help"))
def test_whatever_is_asked_the_log_tells_the_state(asked: list[str], body: str | None) -> None:
    """Replay gives the state; events change something; replies are numbered without gaps and never change."""
    log = _events(_open(body), None)
    ticket = _after(None, log)
    for name in asked:
        try:
            events = _events(COMMANDS[name], ticket)
        except Conflict:
            continue
        after = _after(ticket, events)
        assert (after != ticket) == bool(events)
        assert (after.id, after.owner_id, after.created_at) == (1, 3, NOW)
        log += events
        ticket = after
    assert _after(None, log) == ticket
    replied = [event.id for event in log if isinstance(event, TicketReplied)]
    assert replied == list(range(1 if body is None else 2, ticket.replies + 1))


def test_an_event_that_is_not_known_changes_nothing() -> None:
    class Later(EventData):
        TYPE = "ticket.later"

    assert apply(_opened(), Later(), None) == _opened()
