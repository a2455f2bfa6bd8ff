"""What events make of the dashboard's rows, and what its figures mean. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from shared.events import EventData
from shared.events.keys import KeyCreated, KeyDeactivated, KeyDeleted, KeyReactivated, KeyRevoked, KeyUpdated
from shared.events.requests import RequestEvent
from shared.events.tickets import (
    TicketClosed,
    TicketOpened,
    TicketRenamed,
    TicketReopened,
    TicketResolved,
    TicketStatus,
)

_KEY_STATUS: dict[type[EventData], str] = {
    KeyDeactivated: "inactive",
    KeyReactivated: "active",
    KeyRevoked: "revoked",
    KeyDeleted: "deleted",
}
_TICKET_STATUS: dict[type[EventData], TicketStatus] = {
    TicketResolved: "resolved",
    TicketReopened: "open",
    TicketClosed: "closed",
}


@dataclass(frozen=True)
class Key:
    """A key as the dashboard knows it."""

    id: int
    owner_id: int
    name: str
    status: str
    expires_at: datetime | None


@dataclass(frozen=True)
class Ticket:
    """A ticket as the dashboard knows it."""

    id: int
    owner_id: int
    subject: str
    status: TicketStatus
    created_at: datetime


@dataclass(slots=True)
class Calls:
    """What some request events add to a key. `proxied` are the calls whose answer was seen; `succeeded` those below 400."""

    owner_id: int
    calls: int = 0
    proxied: int = 0
    succeeded: int = 0
    response_microseconds: int = 0
    last_used: datetime | None = None


def apply_key(key: Key | None, event: EventData) -> Key | None:
    """The key after the event; events that the dashboard does not show change nothing."""
    if isinstance(event, KeyCreated):
        return Key(event.id, event.owner_id, event.name, "active", event.expires_at)
    if key is None:
        return None
    if isinstance(event, KeyUpdated):
        return replace(key, name=event.name)
    return replace(key, status=_KEY_STATUS.get(type(event), key.status))


def apply_ticket(ticket: Ticket | None, event: EventData) -> Ticket | None:
    """The ticket after the event."""
    if isinstance(event, TicketOpened):
        return Ticket(event.id, event.owner_id, event.subject, "open", event.created_at)
    if ticket is None:
        return None
    if isinstance(event, TicketRenamed):
        return replace(ticket, subject=event.subject)
    return replace(ticket, status=_TICKET_STATUS.get(type(event), ticket.status))


def count(counts: dict[int, Calls], events: Iterable[RequestEvent]) -> None:
    """Adds to each key's what the events add; requests that were refused add nothing."""
    for event in events:
        data = event.data
        if not data.is_call:
            continue
        held = counts.get(data.key_id)
        if held is None:
            held = counts[data.key_id] = Calls(data.owner_id)
        held.calls += 1
        if held.last_used is None or event.time > held.last_used:
            held.last_used = event.time
        if data.via == "proxy":
            held.proxied += 1
            held.succeeded += data.status_code < 400
            held.response_microseconds += round(data.response_time * 1_000_000)


def success_rate(succeeded: int, proxied: int) -> float:
    """Per cent of the proxied calls with a status below 400, one decimal; 0 when there are none."""
    return round(100 * succeeded / proxied, 1) if proxied else 0.0


def avg_response_time(response_microseconds: Decimal, proxied: int) -> float:
    """Seconds, up to 6 decimals; 0 when there are no proxied calls."""
    return float(round(response_microseconds / proxied / 1_000_000, 6)) if proxied else 0.0
