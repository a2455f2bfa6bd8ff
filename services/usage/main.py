"""Composition root of the usage service.

Each role imports what it runs and no more: a worker starts in half the time that HTTP would take to load.
"""

from __future__ import annotations

from pathlib import Path

from services.usage.settings import Settings
from shared.postgres import BATCH_STATEMENT, MIGRATIONS, migrate, open_pool
from shared.process import keep_memory, run_role, spare_collector, until_signalled


def main() -> None:
    """Runs the role that the command line names."""
    run_role("usage", Settings, {"migrate": _migrate, "api": _api, "worker": _worker})


async def _migrate(settings: Settings) -> None:
    await migrate(settings.database, [MIGRATIONS / "consumer", Path(__file__).parent / "migrations"])


async def _api(settings: Settings) -> None:
    from services.usage import api
    from shared.http import serve
    from shared.turns import Turns

    # All in all less than keys waits for an answer.
    async with open_pool(settings.database, wait=0.5, statement=1.0) as pool:
        await serve("usage", settings, api.router, api.Context(pool, Turns(at_once=2, wait=0.5)))


async def _worker(settings: Settings) -> None:
    from services.usage.worker import Publisher, request_consumer

    publisher = Publisher(settings)
    async with open_pool(settings.database, size=3, statement=BATCH_STATEMENT) as pool:
        consumer = request_consumer(settings, pool)
        spare_collector()
        keep_memory()
        await until_signalled(settings.internal, consumer.checks() | publisher.checks(), consumer.run, publisher.run)
