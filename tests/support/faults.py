"""PostgreSQL and Kafka of a test run taken away, and given back before the next test."""

from __future__ import annotations

from tests.support.eventually import eventually
from tests.support.stack import Servers, is_another


async def crash(servers: Servers, name: str) -> None:
    """Kills the server `name`; returns when it is ready again."""
    before = servers.processes.kill(name)
    await eventually(lambda: is_another(servers.processes, name, before), 60)
