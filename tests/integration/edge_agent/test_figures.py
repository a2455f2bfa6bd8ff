"""What the agent tells of itself on its internal port."""

from __future__ import annotations

import pytest

from tests.integration.edge_agent.test_shipping import until_shipped, write
from tests.integration.edge_agent.world import PARTITIONS, Platform, World, key, owner
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio


async def test_it_is_ready_with_its_replica_and_counts_what_it_does(world: World, platform: Platform) -> None:
    world.start()
    answer = await eventually(lambda: world.internal("/readyz"))
    assert answer.status_code == 503
    assert answer.json()["checks"]["replica"]["ready"] is False
    await platform.publish(owner(), key(1))
    await platform.beat()
    await world.until_ready()
    assert (await world.internal("/readyz")).status_code == 200

    log = world.begin_log()
    write(log, 0, 40)
    await until_shipped(world, log.id, 40)

    async def acknowledged() -> bool:
        return (await world.figures())["keyledger_edge_unacknowledged"] == 0

    await eventually(acknowledged)
    figures = await world.figures()
    assert figures["keyledger_edge_shipped_total"] == 40
    assert figures["keyledger_edge_replica_ready"] == 1
    assert figures["keyledger_edge_replica_held"] == 2
    assert figures["keyledger_edge_replica_age_seconds"] < 60
    assert figures["keyledger_edge_unread_bytes"] == 0
    assert figures["keyledger_edge_request_logs"] == 1
    applied = [figures[f'keyledger_edge_applied_position{{partition="{number}"}}'] for number in range(PARTITIONS)]
    assert max(applied) == platform.position
