"""An agent whose disk is full: it starts, applies revocations, ships and makes room; and a disk that nothing was begun on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.edge.replica.reader import ReplicaReader
from services.edge.requestlog.reader import LogReader
from tests.integration.edge_agent.test_shipping import lasts, until_shipped, write
from tests.integration.edge_agent.world import PARTITIONS, Platform, World, hash_of, key, owner
from tests.support.disks import fill, free_bytes, small_disk
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "edge", 32 * 1024 * 1024) as path:
        yield path


def status_of(replica: ReplicaReader, key_id: int) -> str | None:
    found = replica.lookup(hash_of(key_id))
    return found[0].status if found else None


async def test_on_a_full_disk_it_starts_revokes_ships_and_makes_room(
    disk: Path, world: World, platform: Platform
) -> None:
    await platform.publish(owner(), *(key(number) for number in range(1, 50)))
    world.start()
    await world.until_ready()
    log = world.begin_log(segment_bytes=10_000)
    write(log, 0, 100)
    await until_shipped(world, log.id, 100)
    # What comes then is not shipped, and the disk fills up.
    world.kill()
    for first in range(100, 600, 10):
        write(log, first, 10)
    log.close()
    fill(disk)
    assert free_bytes(disk) == 0
    world.restart_edge("two")
    await world.until_ready()
    await platform.publish(key(1, version=2, status="revoked"), *(key(number) for number in range(50, 100)))
    await eventually(lambda: status_of(world.replica, 1) == "revoked" and status_of(world.replica, 99) == "active")
    found = await until_shipped(world, log.id, 600)
    assert not any(mark.gaps for mark in found.marks.values())
    ends = lasts(log)
    for number in range(PARTITIONS):
        await platform.mark(log.id, number, ends[number])
    await eventually(lambda: len(LogReader(log.path).segments()) == 1)
    assert free_bytes(disk) > 0
    assert world.process is not None and world.process.poll() is None, "it was never ended by an error"


async def test_without_room_for_a_replica_it_ships_and_follows_as_soon_as_there_is(
    disk: Path, world: World, platform: Platform
) -> None:
    await platform.publish(owner(), *(key(number) for number in range(1, 20)))
    log = world.begin_log()
    write(log, 0, 100)
    ballast = fill(disk)
    world.start()
    await until_shipped(world, log.id, 100)
    assert not world.replica.status().ready
    assert (await world.internal("/readyz")).json()["checks"]["replica"]["ready"] is False
    ballast.unlink()
    await world.until_ready()
    assert status_of(world.replica, 1) == "active"
    assert world.process is not None and world.process.poll() is None
    log.close()
