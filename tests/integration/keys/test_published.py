"""What other programs read of the keys service, and what it takes from them: events, states, totals, receipts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from services.keys import bootstrap
from services.keys.settings import Settings
from shared.events import CloudEvent, EventData
from shared.events.requests import EdgeStatus, KeyUsage
from shared.events.topics import EDGE_STATUS, KEY_EVENTS, KEY_STATES, KEY_USAGE
from shared.ids import new_secret
from shared.kafka import Message, Partition, Producer
from shared.partitions import partition_for
from tests.integration.keys.conftest import Owner
from tests.support.eventually import eventually, eventually_sync
from tests.support.service import Service
from tests.support.topics import decoded, read_topic

PATH = "/api/v1/api-keys"
SCHEMAS = Path(__file__).parents[3] / "schemas"
PARTITIONS = 6


def _valid(event: dict[str, Any]) -> dict[str, Any]:
    schema = SCHEMAS / f"{event['type']}.v{event['schemaversion']}.json"
    Draft202012Validator(json.loads(schema.read_text())).validate(event)
    return event


async def _published(keys: Service) -> None:
    query = "SELECT log_head.position = relay.position FROM log_head, relay"
    await eventually(lambda: keys.sql(query) == [(True,)])


def _topic(keys: Service, topic: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        await _published(keys)
        found = await read_topic(keys.kafka, topic)
        return [_valid(event) for records in found.values() for event in decoded(records)]

    return asyncio.run(read())


def _of(events: list[dict[str, Any]], stream: str) -> list[dict[str, Any]]:
    return [event for event in events if event["subject"] == stream]


def test_a_key_s_life_is_published(keys: Service, owner: Owner) -> None:
    key = owner.client.post(PATH, json={"name": "one", "description": "words"}).json()
    path = f"{PATH}/{key['id']}"
    owner.client.put(path, json={"name": "two", "is_active": False})
    owner.client.put(path, json={"is_active": True})
    owner.client.delete(path)
    events = _of(_topic(keys, KEY_EVENTS.name), f"key-{key['id']}")
    assert [event["type"] for event in events] == [
        "key.created",
        "key.updated",
        "key.deactivated",
        "key.reactivated",
        "key.deleted",
    ]
    assert [event["streamversion"] for event in events] == [1, 2, 3, 4, 5]
    assert {event["actor"] for event in events} == {f"key-{owner.key_id}"}
    assert {event["requestid"] for event in events} == {owner.client.headers["x-request-id"]}
    assert events[0]["data"]["last_four"] == key["key"][-4:]
    state = _of(_topic(keys, KEY_STATES.name), f"key-{key['id']}")[-1]
    assert (state["streamversion"], state["data"]["status"], state["epoch"]) == (5, "deleted", 1)
    assert _of(_topic(keys, KEY_EVENTS.name), f"owner-{owner.id}")[0]["data"]["name"] == "Ada"
    assert _of(_topic(keys, KEY_STATES.name), f"owner-{owner.id}")[0]["data"] == {"id": owner.id, "status": "active"}


def test_a_secret_is_nowhere_and_its_hash_in_the_states_only(keys: Service, owner: Owner) -> None:
    key = owner.client.post(PATH, json={"name": "one"}).json()
    secret, digest = key["key"], hashlib.sha256(key["key"].encode()).hexdigest()
    states = _of(_topic(keys, KEY_STATES.name), f"key-{key['id']}")
    assert states[-1]["data"]["hashes"] == [{"hash": digest, "valid_until": None}]
    events = json.dumps(_topic(keys, KEY_EVENTS.name))
    assert digest not in events
    for text in (
        events,
        json.dumps(states),
        keys.log("api"),
        keys.log("worker"),
        str(keys.sql("SELECT data, private, meta FROM events")),
        str(keys.sql("SELECT * FROM keys")),
        str(keys.sql("SELECT * FROM key_hashes")),
        owner.client.get(f"{PATH}/{key['id']}").text,
        owner.client.get(PATH).text,
    ):
        assert secret not in text
    for text in (owner.client.get(PATH).text, keys.log("api"), keys.log("worker")):
        assert digest not in text


def _send(keys: Service, topic: str, key: str, data: EventData, epoch: int = 1) -> None:
    event = CloudEvent[EventData](
        id=uuid.uuid4().hex,
        source="keyledger/test",
        type=data.TYPE,
        time=datetime.now(UTC),
        subject=key,
        epoch=epoch,
        data=data,
    )

    async def send() -> None:
        producer = await Producer.open(keys.kafka, "keyledger/test")
        try:
            partition = Partition(topic, partition_for(key.encode(), PARTITIONS))
            await producer.transaction([Message(partition, key.encode(), event.encode())])
        finally:
            await producer.abandon()

    asyncio.run(send())


def test_lists_show_the_totals_that_usage_published(keys: Service, owner: Owner) -> None:
    def publish(count: int, epoch: int = 1) -> None:
        used = datetime(2024, 3, 21, 15, 30, count % 60, tzinfo=UTC)
        data = KeyUsage(key_id=owner.key_id, owner_id=owner.id, usage_count=count, last_used=used)
        _send(keys, KEY_USAGE.name, f"key-{owner.key_id}", data, epoch)

    def shown() -> tuple[int, str | None]:
        key = owner.client.get(PATH).json()["api_keys"][0]
        return key["usage_count"], key["last_used"]

    assert shown() == (0, None)
    publish(42)
    eventually_sync(lambda: shown() == (42, "2024-03-21T15:30:42Z"))
    publish(41)
    publish(43)
    eventually_sync(lambda: shown()[0] == 43)
    publish(7, epoch=2)
    eventually_sync(lambda: shown() == (7, "2024-03-21T15:30:07Z"))
    assert owner.client.get(f"{PATH}/{owner.key_id}").json()["usage_count"] == 7
    assert owner.client.put(f"{PATH}/{owner.key_id}", json={"name": "x"}).json()["usage_count"] == 7


def test_a_change_returns_with_a_receipt_of_the_edges(keys: Service, owner: Owner) -> None:
    def report(edge: str, status: Any, position: int) -> None:
        applied = dict.fromkeys(range(PARTITIONS), position)
        _send(
            keys, EDGE_STATUS.name, edge, EdgeStatus(edge=edge, status=status, ready=True, applied=applied, freshness=0)
        )

    def receipt() -> str:
        path = f"{PATH}/{owner.key_id}"
        answer = owner.client.put(path, json={"name": uuid.uuid4().hex})
        assert answer.status_code == 200
        return str(answer.headers["keyledger-propagation"])

    def receipt_while_another_lives() -> str:
        report("well", "live", 10**9)
        return receipt()

    eventually_sync(lambda: receipt().startswith("edges=0; confirmed=0; ms="))
    report("late", "live", 10**9)
    eventually_sync(lambda: receipt().startswith("edges=1; confirmed=1; ms="))
    report("late", "live", 0)
    waited = eventually_sync(lambda: re.findall(r"edges=1; confirmed=0; ms=(\d+)", receipt()))
    assert int(waited[0]) >= 1000
    eventually_sync(lambda: re.fullmatch(r'edges=0; confirmed=0; ms=\d+; silent="late"', receipt()))
    eventually_sync(lambda: re.fullmatch(r'edges=1; confirmed=1; ms=\d+; silent="late"', receipt_while_another_lives()))
    report("late", "stopped", 0)
    eventually_sync(lambda: 'silent="late"' in receipt_while_another_lives())
    report("late", "retired", 0)
    eventually_sync(lambda: re.fullmatch(r"edges=1; confirmed=1; ms=\d+", receipt_while_another_lives()))


@pytest.mark.parametrize("again", [1, 3])
def test_a_first_key_is_made_once_however_often_it_is_asked_for(keys: Service, again: int) -> None:
    command, secret = uuid.uuid4(), new_secret("live")

    async def create() -> tuple[int, int]:
        return await bootstrap.create_owner(
            keys.settings(Settings), name="Bo", secret=secret, command_id=command, admin=True, limited=False
        )

    made = {asyncio.run(create()) for _ in range(1 + again)}
    assert len(made) == 1
    ((owner_id, key_id),) = made
    found = keys.sql(f"SELECT owner_id, state->'limits', state->'permissions' FROM keys WHERE id = {key_id}")
    assert found == [(owner_id, {"minute": None, "hour": None, "day": None}, ["admin"])]
    streams = f"stream IN ('owner-{owner_id}', 'key-{key_id}')"
    assert keys.sql(f"SELECT type FROM events WHERE {streams} ORDER BY position") == [
        ("owner.created",),
        ("key.created",),
    ]
