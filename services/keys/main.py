"""Composition root of the keys service.

Each role imports what it runs and no more: a worker starts in half the time that HTTP would take to load.
"""

from __future__ import annotations

from pathlib import Path

from services.keys.settings import Settings
from shared.postgres import BATCH_STATEMENT, MIGRATIONS, migrate, open_pool
from shared.process import Apart, run_role, until_signalled


def main() -> None:
    """Runs the role that the command line names."""
    run_role("keys", Settings, {"migrate": _migrate, "api": _api, "worker": _worker})


async def _migrate(settings: Settings) -> None:
    own = Path(__file__).parent / "migrations"
    await migrate(settings.database, [MIGRATIONS / "eventstore", MIGRATIONS / "consumer", own])


async def _api(settings: Settings) -> None:
    import httpx2

    from services.keys import api
    from services.keys.propagation import Propagation
    from shared.http import serve

    propagation = Propagation(settings.kafka)
    async with (
        open_pool(settings.database) as pool,
        # Without a bound of its own, which one owner's requests could fill for all: usage has one for each owner.
        httpx2.AsyncClient(base_url=settings.usage_url, timeout=3.0, limits=httpx2.Limits()) as usage,
    ):
        context = api.Context(settings, pool, propagation, usage)
        await serve("keys", settings, api.router, context, propagation.run, checks=propagation.checks())


async def _worker(settings: Settings) -> None:
    from services.keys.worker import PUBLICATION, usage_consumer
    from shared.relay.loop import Relay

    relay = Relay(settings, settings.database, PUBLICATION)
    async with open_pool(settings.database, size=3, statement=BATCH_STATEMENT) as pool:
        usage = usage_consumer(settings, pool)
        # Totals that make no sense must not keep revocations from the edges.
        consumer = Apart(usage.run, usage.checks())
        await until_signalled(settings.internal, relay.checks() | consumer.checks(), relay.run, consumer.run)
