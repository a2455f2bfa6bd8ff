"""A broker that goes away, and one that comes back as another, empty cluster: what serves, serves on, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.events.topics import KEY_STATES, USAGE_MARKS
from tests.integration.edge_agent import broker
from tests.integration.edge_agent.broker import Broker
from tests.integration.edge_agent.test_shipping import lasts, taken, until_shipped, write
from tests.integration.edge_agent.world import PARTITIONS, Platform, World, hash_of, key, owner
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def kafka_alone(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker of the test's own."""
    async with broker.running(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def edge(tmp_path: Path, kafka_alone: Broker) -> Iterator[World]:
    """An edge at that broker."""
    made = World(tmp_path / "edge", kafka_alone.address)
    try:
        yield made
    finally:
        made.kill()
        made.replica.close()


async def test_a_broker_that_was_away_is_gone_on_with(edge: World, kafka_alone: Broker) -> None:
    platform = await Platform.open(edge.kafka)
    await platform.publish(owner(), key(1))
    await platform.beat()
    edge.start()
    await edge.until_ready()
    log = edge.begin_log()
    written = write(log, 0, 50)
    await until_shipped(edge, log.id, written)

    kafka_alone.kill()
    await platform.close()
    written = write(log, written, 50)
    await eventually(lambda: "can't be sent" in edge.output())
    assert edge.replica.status().ready
    await kafka_alone.start()
    written = write(log, written, 50)

    platform = await _again(platform)
    await platform.publish(key(1, 2, "revoked"))
    await eventually(lambda: _status_of(edge, 1) == "revoked", 60)
    await until_shipped(edge, log.id, written, 60)
    assert "loaded anew" not in edge.output()
    await platform.close()
    assert edge.stop() == 0


async def test_an_empty_cluster_changes_nothing_until_a_newer_heartbeat_matches(
    edge: World, kafka_alone: Broker
) -> None:
    platform = await Platform.open(edge.kafka, KEY_STATES, USAGE_MARKS)
    await platform.publish(owner(), key(1), key(2, 1), key(3))
    await platform.publish(key(2, 2, "revoked"))
    await platform.beat()
    edge.start()
    await edge.until_ready()
    log = edge.begin_log()
    written = write(log, 0, 60)
    await until_shipped(edge, log.id, written)
    for number, last in enumerate(lasts(log)):
        await platform.mark(log.id, number, last)
    await platform.close()

    kafka_alone.kill()
    kafka_alone.wipe()
    await kafka_alone.start()
    # An older state of the platform, complete in itself: key 2 is good there.
    older = await Platform.open(edge.kafka, KEY_STATES, USAGE_MARKS)
    await older.publish(owner(), key(1), key(2, 1), key(3))
    await eventually(lambda: "loaded anew" in edge.output(), 60)
    await older.beat()
    written = write(log, written, 60)
    # All that the old cluster had acknowledged goes to the new one too: its marks may have been lost with it.
    await until_shipped(edge, log.id, written, 90)
    assert edge.replica.status().ready
    assert _status_of(edge, 2) == "revoked"
    assert "serves now" not in edge.output()

    older.position = platform.position
    await older.publish(key(2, 2, "revoked"), key(4))
    await older.beat()
    await eventually(lambda: "serves now" in edge.output())
    assert _status_of(edge, 2) == "revoked"
    assert _status_of(edge, 4) == "active"
    assert edge.replica.status().ready
    await older.close()

    assert edge.stop() == 0
    assert (await taken(edge)).ordinals(log.id) == list(range(written))


async def test_a_new_edge_at_an_empty_cluster_does_not_serve(edge: World, kafka_alone: Broker) -> None:
    # A broker that has just started may answer late, and then the copy would serve alone.
    edge.settings["ALONE_SECONDS"] = "120"
    platform = await Platform.open(edge.kafka)
    await platform.publish(owner(), key(1))
    await platform.beat()
    edge.start()
    await edge.until_ready()
    edge.kill()
    await platform.close()
    kafka_alone.kill()
    kafka_alone.wipe()
    await kafka_alone.start()
    edge.restart_edge("two")
    platform = await _again(platform)
    await platform.publish_silently(key(1))
    await eventually(lambda: "loaded anew" in edge.output())
    assert not edge.replica.status().ready
    await platform.publish(owner())
    await platform.beat()
    await edge.until_ready()
    await platform.close()
    assert len(edge.replica.status().beats) == PARTITIONS


async def _again(platform: Platform) -> Platform:
    """The platform with a new connection and what it knew."""
    opened = await Platform.open(platform.kafka, KEY_STATES, USAGE_MARKS)
    opened.streams, opened.position, opened.epoch = platform.streams, platform.position, platform.epoch
    return opened


def _status_of(world: World, key_id: int) -> str | None:
    found = world.replica.lookup(hash_of(key_id))
    return found[0].status if found else None
