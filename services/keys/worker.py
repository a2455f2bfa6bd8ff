"""What the keys worker publishes (its log and its keys' states) and what it takes in (the keys' usage counts)."""

from __future__ import annotations

from collections.abc import Sequence

from services.keys import store
from services.keys.domain.usage import newest
from services.keys.settings import Settings
from shared.consumer.loop import Consumer, Kind, Subscription, Together
from shared.consumer.records import Event
from shared.events.keys import KeyDeleted
from shared.events.requests import KeyUsage
from shared.events.topics import KEY_EVENTS, KEY_STATES, KEY_USAGE
from shared.postgres import Connection, Pool
from shared.relay.publication import Publication

PUBLICATION = Publication("keyledger/keys", KEY_EVENTS, KEY_STATES, store.states_of, final=frozenset({KeyDeleted.TYPE}))


def usage_consumer(settings: Settings, pool: Pool) -> Consumer:
    """The consumer of the totals that lists show."""
    return Consumer(settings.kafka, pool, "keys", [Subscription(KEY_USAGE, Kind.LATEST, lambda: Together(store_usage))])


async def store_usage(connection: Connection, events: Sequence[Event]) -> None:
    """Keeps the newest totals of each key."""
    totals = newest((event.epoch or 1, KeyUsage.model_validate(event.data)) for event in events)
    await store.save_usage(connection, totals)
