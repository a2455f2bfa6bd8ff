"""Composition root of the stats service.

Each role imports what it runs and no more: a worker starts in half the time that HTTP would take to load.
"""

from __future__ import annotations

from pathlib import Path

from services.stats.settings import Settings
from shared.postgres import BATCH_STATEMENT, MIGRATIONS, migrate, open_pool
from shared.process import keep_memory, run_role, spare_collector, until_signalled


def main() -> None:
    """Runs the role that the command line names."""
    run_role("stats", Settings, {"migrate": _migrate, "api": _api, "worker": _worker})


async def _migrate(settings: Settings) -> None:
    await migrate(settings.database, [MIGRATIONS / "consumer", Path(__file__).parent / "migrations"])


async def _api(settings: Settings) -> None:
    from services.stats import api
    from shared.http import serve
    from shared.turns import Turns

    async with open_pool(settings.database, wait=2.0, statement=2.0) as pool:
        await serve("stats", settings, api.router, api.Context(pool, Turns(at_once=2, wait=2.0)))


async def _worker(settings: Settings) -> None:
    from services.stats.worker import consumer

    async with open_pool(settings.database, size=3, statement=BATCH_STATEMENT) as pool:
        taking_in = consumer(settings, pool)
        spare_collector()
        keep_memory()
        await until_signalled(settings.internal, taking_in.checks(), taking_in.run)
