"""Kafka loses the ends of logs that it had acknowledged, a revocation among them, and an attempt that was aborted then makes
them longer than they were. What was lost comes again, and nothing twice.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.events.topics import KEY_EVENTS, KEY_STATES, KEY_USAGE, TICKET_EVENTS, USAGE_MARKS
from shared.kafka import KafkaUnavailable, Message, Partition, Producer
from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load
from tests.faults.brokers import keep_logs, lengths, lose_tails
from tests.faults.scenario import Scenario
from tests.faults.states import assert_states_are_whole
from tests.faults.twin import second_edge, url_of
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack
from tests.support.topics import ends_of

TOPICS = [KEY_EVENTS, KEY_STATES, TICKET_EVENTS, KEY_USAGE, USAGE_MARKS]
WRITERS = ("keys-worker", "tickets-worker", "usage-worker")


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_lost_tail(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    kafka = stack.env["KEYLEDGER_KAFKA"]
    keep_logs(stack, TOPICS, tmp_path / "kept")
    stack.wait_ready(300)
    revoked = owner.create_key("revoked", limits=UNLIMITED)
    with owner.with_key(revoked["key"]) as client:
        eventually_sync(lambda: client.get("/echo/before").status_code == 200, 60)
    assert owner.send("DELETE", f"/api/v1/api-keys/{revoked['id']}").is_success
    ticket = owner.send("POST", "/api/v1/tickets", json={"subject": "lost"})
    assert ticket.status_code == 201
    enough = sum(len(load.seen) for load in loads) + 300
    eventually_sync(lambda: sum(len(load.seen) for load in loads) > enough, 120)
    before = asyncio.run(_ends(kafka))
    for name in WRITERS:
        stack.pause(name)
    try:
        lose_tails(stack, TOPICS, tmp_path / "kept")
        after = asyncio.run(_ends(kafka))
        lost = {partition: end - after[partition] for partition, end in before.items()}
        assert sum(lost.values()) > 100
        scenario.faults += sum(count > 0 for count in lost.values())
        asyncio.run(_abort(kafka, lost))
        assert all(end >= before[partition] for partition, end in asyncio.run(lengths(kafka, before)).items())
    finally:
        for name in WRITERS:
            stack.resume(name)
    stack.wait_ready(300)
    eventually_sync(lambda: assert_states_are_whole(stack) is None, 120, 1.0)
    with second_edge(stack, tmp_path) as cold:
        cold.start()
        cold.wait_ready()
        for url in (owner.url, url_of(cold)):
            with Client(url, revoked["key"]) as client:
                assert client.get("/echo/after").status_code == 401
    tickets = eventually_sync(lambda: owner.get("/api/v1/dashboard/stats").json(), 60)
    assert tickets
    scenario.account(owner, loads, faults=5, answers=300)


async def _ends(kafka: str) -> dict[Partition, int]:
    return {partition: end for topic in TOPICS for partition, end in (await ends_of(kafka, topic.name)).items()}


async def _abort(kafka: str, lengths: dict[Partition, int]) -> None:
    """Lengthens each partition by as much as it lost, by a transaction that is never committed."""
    producer = await Producer.open(kafka, "keyledger/faults", patience=60.0)
    messages = [Message(partition, b"aborted", b"{}") for partition, n in lengths.items() for _ in range(n + 1)]
    with pytest.raises(KafkaUnavailable, match="shorter"):
        await producer.transaction(messages, {messages[0].partition: 2**60})
    await producer.abandon()
    await (await Producer.open(kafka, "keyledger/faults")).abandon()
