"""What all tests share: the event loop, and real PostgreSQL and Kafka, started once a run when the first test asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import Servers, local_servers
from tests.support.topics import delete_topics


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Tests run on the loop that the processes run on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL and Kafka. Who stops one of them waits until it is ready again."""
    with local_servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture
def database(servers: Servers) -> Iterator[str]:
    """The DSN of an empty database."""
    with servers.fresh_database() as dsn:
        yield dsn


@pytest.fixture
def kafka(servers: Servers) -> str:
    """The address of a Kafka without topics: a log that starts at 1 does not meet the one of another test's database."""
    delete_topics(servers.kafka)
    return servers.kafka
