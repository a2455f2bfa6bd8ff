"""Key states into the replica: when it may be read, what it says of itself, and what a restart or a gap does to it."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.edge.replica.reader import current
from shared.events.topics import KEY_STATES
from tests.integration.edge_agent.world import EDGE, PARTITIONS, Platform, World, hash_of, key, owner, partition_of_key
from tests.support.eventually import eventually
from tests.support.topics import adelete_topics

pytestmark = pytest.mark.anyio


async def test_states_arrive_and_the_edge_says_so(world: World, platform: Platform) -> None:
    world.start()
    await platform.publish(owner(), key(1), key(2))
    await platform.beat()
    await world.until_ready()
    found = world.replica.lookup(hash_of(1))
    assert found is not None
    assert (found[0].id, found[0].status, found[1] and found[1].id) == (1, "active", 1)
    assert world.replica.lookup(hash_of(9)) is None

    position = await platform.publish(key(2, 2, "revoked"))
    partition = partition_of_key(2)

    async def confirmed() -> bool:
        last = (await world.statuses())[-1]
        return last["data"]["applied"].get(str(partition)) == position

    await eventually(confirmed)
    found = world.replica.lookup(hash_of(2))
    assert found is not None
    assert found[0].status == "revoked"
    last = (await world.statuses())[-1]
    assert (last["subject"], last["epoch"], last["type"]) == (EDGE, 1, "edge.status")
    assert last["data"]["ready"] is True
    assert last["data"]["freshness"] < 10

    assert world.stop() == 0
    assert (await world.statuses())[-1]["data"]["status"] == "stopped"


async def test_a_status_comes_each_second_without_news(world: World, platform: Platform) -> None:
    await platform.publish(owner())
    await platform.beat()
    world.start()
    await world.until_ready()

    async def several() -> bool:
        return len(await world.statuses()) >= 4

    begun = time.monotonic()
    await eventually(several)
    assert time.monotonic() - begun < 10


async def test_not_ready_without_a_heartbeat_in_each_partition(world: World, platform: Platform) -> None:
    world.start()
    await platform.publish_silently(owner(), key(1))
    await eventually(lambda: world.replica.lookup(hash_of(1)))
    assert not world.replica.status().ready
    await platform.publish(owner(), key(1))
    assert not world.replica.status().ready
    await platform.beat()
    await world.until_ready()


async def test_what_the_topic_lacks_keeps_a_new_edge_from_serving(world: World, platform: Platform) -> None:
    """Its heartbeats count a key that is not there; when that comes, the edge is ready."""
    await platform.publish(owner(), key(1))
    platform.streams["key-2"] = key(2)
    await platform.beat()
    world.start()
    await eventually(lambda: world.replica.lookup(hash_of(1)))
    await eventually(lambda: "loaded anew" in world.output())
    assert not world.replica.status().ready
    await platform.publish(key(2))
    await world.until_ready()
    assert world.replica.lookup(hash_of(2))


async def test_a_serving_copy_serves_on_while_one_that_matches_is_loaded(world: World, platform: Platform) -> None:
    await platform.publish(owner(), key(1), key(2))
    await platform.beat()
    world.start()
    await world.until_ready()
    before = current(world.data / "replica")

    unready: list[bool] = []
    watching = asyncio.ensure_future(_watch(world, unready))
    lacking = {partition_of_key(2)}
    await platform.beat(unsaid=1)
    await eventually(lambda: "loaded anew" in world.output())
    # What comes meanwhile is applied to the copy that serves.
    await platform.publish(key(1, 2, "revoked"), unsaid=1)
    await eventually(lambda: _status_of(world, 1) == "revoked")
    assert current(world.data / "replica") == before

    await platform.beat()
    await eventually(lambda: current(world.data / "replica") != before)
    assert (_status_of(world, 1), _status_of(world, 2)) == ("revoked", "active")
    assert world.replica.status().ready
    watching.cancel()
    assert not unready
    assert lacking <= set(range(PARTITIONS))


async def test_a_restart_of_the_agent_alone_is_not_seen_by_readers(world: World, platform: Platform) -> None:
    await platform.publish(owner(), key(1))
    await platform.beat()
    world.start()
    await world.until_ready()
    unready: list[bool] = []
    watching = asyncio.ensure_future(_watch(world, unready))
    for version in (2, 3, 4):
        world.kill()
        await platform.publish(key(1, version, "inactive" if version % 2 else "active"))
        world.start()
        wanted = "inactive" if version % 2 else "active"
        await eventually(lambda wanted=wanted, version=version: _seen(world, 1) == (wanted, version))
    watching.cancel()
    assert not unready


async def test_a_new_start_of_the_edge_waits_for_kafka_and_goes_on_where_it_was(
    world: World, platform: Platform
) -> None:
    await platform.publish(owner(), key(1))
    await platform.beat()
    world.start()
    await world.until_ready()
    world.kill()
    await platform.publish(key(2))
    world.restart_edge("two")
    await world.until_ready()
    # Nothing was applied twice over: it was ready only with what came meanwhile.
    assert world.replica.lookup(hash_of(2))
    assert "loaded anew" not in world.output()


async def test_records_written_over_while_the_edge_was_away_are_not_missed(
    world: World, platform: Platform, kafka: str
) -> None:
    """Kafka lost the topic's tail and was given it again, in another order, and more: the edge's offset lies inside."""
    await platform.publish(owner(), key(1), key(2))
    await platform.beat()
    world.start()
    await world.until_ready()
    world.kill()
    await adelete_topics(kafka, [KEY_STATES.name])
    again = await Platform.open(kafka)
    try:
        again.generation = platform.generation + 1
        again.position = platform.position
        await again.publish(key(1, 2, "revoked"), key(2), owner())
        for _ in range(20):
            await again.beat()
    finally:
        await again.close()
    world.restart_edge("two")
    await world.until_ready()
    assert _status_of(world, 1) == "revoked"
    assert "loaded anew" in world.output()


async def test_without_kafka_a_complete_copy_serves_alone_and_an_empty_one_does_not(
    world: World, platform: Platform
) -> None:
    await platform.publish(owner(), key(1))
    await platform.beat()
    world.start()
    await world.until_ready()
    world.kill()
    world.kafka = "127.0.0.1:1"
    world.restart_edge("two")
    await world.until_ready()
    assert _status_of(world, 1) == "active"
    world.kill()

    fresh = World(world.data.parent / "fresh", "127.0.0.1:1")
    fresh.start()
    await eventually(lambda: "following interrupted" in fresh.output())
    # Twice as long as a complete copy would have waited.
    given_up = time.monotonic() + 2
    await eventually(lambda: time.monotonic() > given_up)
    assert not fresh.replica.status().ready
    fresh.kill()


async def test_another_number_of_partitions_ends_the_agent(world: World, platform: Platform) -> None:
    """In the topics, and in a replica of an earlier setting."""
    await platform.publish(owner())
    await platform.beat()
    world.start()
    await world.until_ready()
    world.kill()
    fresh = World(world.data.parent / "fresh", world.kafka)
    for edge in (fresh, world):
        edge.partitions = PARTITIONS + 3
        edge.start()
        assert edge.process is not None
        assert await asyncio.to_thread(edge.process.wait, 30) == 78
        assert edge.output().splitlines()[-1].startswith("KEYLEDGER_PARTITIONS: ")


def _status_of(world: World, key_id: int) -> str | None:
    found = world.replica.lookup(hash_of(key_id))
    return found[0].status if found else None


def _seen(world: World, key_id: int) -> tuple[str, int] | None:
    found = world.replica.lookup(hash_of(key_id))
    return (found[0].status, found[0].version) if found else None


async def _watch(world: World, unready: list[bool]) -> None:
    """What a serving process sees at each turn of its loop."""
    while True:
        if not world.replica.status().ready or not world.replica.lookup(hash_of(1)):
            unready.append(True)
        await asyncio.sleep(0.001)
