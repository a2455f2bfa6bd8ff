"""What all tests share: the event loop, and real PostgreSQL and Kafka, started once a run when the first test asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling

from tests.support.containers import container_servers
from tests.support.stack import CONTAINERS, Servers, local_servers
from tests.support.topics import delete_topics

# What shares a stack or servers, and what would disturb what else runs on them, goes to one worker.
_TOGETHER = {
    "faults/test_kills.py": "kills",
    "faults/test_compaction.py": "kills",
    "faults/test_rebalance.py": "kills",
    "faults": "faults",
    "e2e": "api",
    "integration/edge_agent": "agent",
    "integration/edge": "edge",
    "integration/local": "local",
    "integration/usage": "usage",
    "integration/stats": "usage",
    "integration": "store",
}


class _Groups(LoadScopeScheduling):
    """Gives a whole group to one worker: unit tests by file, others by what they share.

    The marker `xdist_group` does not reach pytest-xdist 3.8 with pytest 9.2: it writes the group into an attribute of the
    item that is read no more.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        below = path.removeprefix("tests/")
        return next((group for prefix, group in _TOGETHER.items() if below.startswith(prefix)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if CONTAINERS and "tests/integration/local/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="tests the stack without containers"))


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Tests run on the loop that the processes run on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL and Kafka. Who stops one of them waits until it is ready again."""
    with container_servers() if CONTAINERS else local_servers(tmp_path_factory.mktemp("servers")) as running:
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
