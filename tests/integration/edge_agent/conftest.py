"""An agent's world for each test, and the platform around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.events.topics import KEY_STATES, USAGE_MARKS
from tests.integration.edge_agent.world import Platform, World


@pytest.fixture
def world(tmp_path: Path, kafka: str) -> Iterator[World]:
    """A world whose agent is not started yet."""
    made = World(tmp_path / "edge", kafka)
    try:
        yield made
    finally:
        made.kill()
        made.replica.close()


@pytest.fixture
async def platform(kafka: str) -> AsyncIterator[Platform]:
    """The platform, with the topics that the agent does not make."""
    opened = await Platform.open(kafka, KEY_STATES, USAGE_MARKS)
    yield opened
    await opened.close()
