"""An edge of each kind that the tests of a module share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.edge.upstream import Upstream
from tests.integration.edge.world import World

ROUTES = """
[routes.echo]
prefix = "/echo"
upstream = "{origin}"

[routes.small]
prefix = "/small"
upstream = "{origin}"
body_max = 1000

[routes.guarded]
prefix = "/echo/guarded"
upstream = "{origin}"
permission = {{ GET = "guarded:read", PUT = "guarded:write" }}

[routes.open]
prefix = "/open"
upstream = "{origin}"
public = true
body_max = 1000

[routes.quick]
prefix = "/quick"
upstream = "{origin}"
timeout = 0.5

[routes.nobody]
prefix = "/nobody"
upstream = "http://127.0.0.1:1"
"""


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def world(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An edge that is ready."""
    made = World(tmp_path_factory.mktemp("edge"), upstream, ROUTES.format(origin=upstream.origin))
    made.ready()
    try:
        yield made.start().until_ready()
    finally:
        made.stop()


@pytest.fixture
def make(upstream: Upstream, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes an edge with other settings; it is not started."""
    worlds: list[World] = []

    def made(**settings: str) -> World:
        names = {f"KEYLEDGER_EDGE_{name.upper()}": value for name, value in settings.items()}
        path = tmp_path / str(len(worlds))
        worlds.append(World(path, upstream, ROUTES.format(origin=upstream.origin), names))
        return worlds[-1]

    yield made
    for world in worlds:
        world.stop()


@pytest.fixture(scope="module")
def key(world: World) -> str:
    """The secret of a key without limits."""
    return world.key()
