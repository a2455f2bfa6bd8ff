"""`key-states` as its readers find it, against the keys service's own log."""

from __future__ import annotations

import asyncio
import json

import psycopg

from shared.events.topics import KEY_STATES
from shared.kafka import Record
from tests.support.stack import LocalStack
from tests.support.topics import read_topic


def states_in_kafka(stack: LocalStack) -> dict[str, list[int]]:
    """The versions of each key and owner in the order in which readers get them."""
    found: dict[str, list[int]] = {}
    for record in key_states(stack):
        key = (record.key or b"").decode()
        if record.value is not None and not key.startswith("beat-"):
            found.setdefault(key, []).append(json.loads(record.value)["streamversion"])
    return found


def key_states(stack: LocalStack) -> list[Record]:
    """All committed records of the topic, partition by partition."""
    partitions = asyncio.run(read_topic(stack.env["KEYLEDGER_KAFKA"], KEY_STATES.name))
    return [record for records in partitions.values() for record in records]


def states_in_the_log(stack: LocalStack) -> dict[str, int]:
    """The last version of each key and owner, as the keys service's database has it."""
    with psycopg.connect(stack.env["KEYLEDGER_KEYS_DATABASE"]) as connection:
        return dict(connection.execute("SELECT stream, max(version) FROM events GROUP BY stream").fetchall())


def assert_states_are_whole(stack: LocalStack) -> None:
    """That the last state of each stream in Kafka is the one after its last event."""
    assert {stream: versions[-1] for stream, versions in states_in_kafka(stack).items()} == states_in_the_log(stack)
