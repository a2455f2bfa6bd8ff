"""A serving process whose disk is full, from its start or later: 503 and nothing uncounted, and by itself back again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.edge.conftest import ROUTES
from tests.integration.edge.upstream import Upstream
from tests.integration.edge.world import World
from tests.support.disks import fill, small_disk
from tests.support.eventually import eventually_sync


@pytest.fixture
def small(upstream: Upstream, tmp_path: Path) -> Iterator[World]:
    """An edge on a disk of 16 MiB; it is not started."""
    with small_disk(tmp_path / "disk", 16 * 1024 * 1024) as disk:
        made = World(disk / "edge", upstream, ROUTES.format(origin=upstream.origin))
        made.ready()
        try:
            yield made
        finally:
            made.stop()


def test_one_that_starts_on_a_full_disk_serves_when_there_is_space(small: World) -> None:
    key = small.key()
    small.start().until_ready()
    assert small.get("/echo/a", key).status == 200
    ballast = fill(small.data.parent)
    eventually_sync(lambda: small.get("/echo/b", key).status == 503)
    assert small.get("/echo/b", key).json["code"] == "not_ready"
    small.signal(9)
    small.wait()
    small.start()
    eventually_sync(lambda: small.get("/echo/c", key).status == 503, 30)
    assert not small.is_ready_now()
    ballast.unlink()
    small.until_ready()
    assert small.get("/echo/d", key).status == 200
    assert [len(small.settled(f"/echo/{name}")) for name in "acd"] == [1, 0, 1]
