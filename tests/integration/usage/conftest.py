"""The usage service's processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.events.topics import REQUEST_EVENTS
from shared.kafka import ensure_topics
from shared.settings import Base
from tests.integration.usage.processes import Agent, Service


@pytest.fixture
def usage(kafka: str, database: str, tmp_path: Path) -> Iterator[Service]:
    """The service with an empty database; its workers are killed at the end."""
    made = Service("usage", kafka, database, tmp_path)
    made.migrate()
    asyncio.run(ensure_topics(Base(kafka=kafka), [REQUEST_EVENTS]))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def agent(kafka: str) -> Agent:
    return Agent(kafka)
