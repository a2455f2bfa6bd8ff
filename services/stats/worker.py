"""What the stats worker takes in: key, ticket and request events, each into its own table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from services.stats import domain, store
from services.stats.settings import Settings
from shared.consumer.loop import Consumer, Kind, Subscription, Together
from shared.consumer.records import Event
from shared.events import EventData, keys, tickets
from shared.events.requests import RequestEvent
from shared.events.topics import KEY_EVENTS, REQUEST_EVENTS, TICKET_EVENTS
from shared.postgres import Connection, Pool

Row = TypeVar("Row")

_KEY_EVENTS: dict[str, type[EventData]] = {event.TYPE: event for event in keys.EVENTS}
_TICKET_EVENTS: dict[str, type[EventData]] = {event.TYPE: event for event in tickets.EVENTS}


def consumer(settings: Settings, pool: Pool) -> Consumer:
    """The consumer of all that the dashboard shows."""
    return Consumer(
        settings.kafka,
        pool,
        "stats",
        [
            Subscription(KEY_EVENTS, Kind.VERSIONS, lambda: Together(store_keys)),
            Subscription(TICKET_EVENTS, Kind.VERSIONS, lambda: Together(store_tickets)),
            Subscription(REQUEST_EVENTS, Kind.MARKS, Requests),
        ],
    )


async def store_keys(connection: Connection, events: Sequence[Event]) -> None:
    """Applies key events to the keys; owners' own events are not shown."""
    await _fold(connection, events, _KEY_EVENTS, "key-", store.load_keys, domain.apply_key, store.save_keys)


async def store_tickets(connection: Connection, events: Sequence[Event]) -> None:
    """Applies ticket events to the tickets."""
    await _fold(
        connection, events, _TICKET_EVENTS, "ticket-", store.load_tickets, domain.apply_ticket, store.save_tickets
    )


class Requests:
    """Request events on their way into their keys' calls."""

    def __init__(self) -> None:
        self._counts: dict[int, domain.Calls] = {}

    def add(self, events: Sequence[RequestEvent]) -> None:
        """Counts them."""
        domain.count(self._counts, events)

    async def store(self, connection: Connection) -> None:
        """Adds what was counted."""
        if self._counts:
            await store.add_calls(connection, self._counts)


async def _fold(
    connection: Connection,
    events: Sequence[Event],
    types: dict[str, type[EventData]],
    prefix: str,
    load: Callable[[Connection, Collection[int]], Awaitable[dict[int, Row]]],
    apply: Callable[[Row | None, EventData], Row | None],
    save: Callable[[Connection, Collection[Row]], Awaitable[None]],
) -> None:
    """Loads the rows that the events are about, applies the events in order, saves the rows."""
    about = [
        (int(event.subject.removeprefix(prefix)), types[event.type].model_validate(event.data))
        for event in events
        if event.type in types and event.subject.startswith(prefix)
    ]
    rows = await load(connection, {number for number, _ in about})
    for number, event in about:
        row = apply(rows.get(number), event)
        if row is not None:
            rows[number] = row
    await save(connection, list(rows.values()))
