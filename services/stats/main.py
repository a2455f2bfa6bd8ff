"""Composition root of the stats service."""

from __future__ import annotations

import sys
from pathlib import Path

from services.stats import api
from services.stats.settings import Settings
from services.stats.worker import consumer
from shared.http import create_app
from shared.postgres import MIGRATIONS, migrate, open_pool
from shared.process import http_server, run, until_signalled
from shared.settings import load
from shared.telemetry import configure_logging, internal_server


def main() -> None:
    """Runs the role that the command line names."""
    settings = load(Settings)
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    configure_logging(settings.log_level, service="stats", role=role)
    roles = {"migrate": _migrate, "api": _api, "worker": _worker}
    if role not in roles:
        raise SystemExit(f"usage: python -m services.stats {'|'.join(roles)}")
    run(roles[role](settings))


async def _migrate(settings: Settings) -> None:
    await migrate(settings.database, [MIGRATIONS / "consumer", Path(__file__).parent / "migrations"])


async def _api(settings: Settings) -> None:
    async with open_pool(settings.database) as pool:
        app = create_app("stats", settings.identity_public_keys)
        app.include_router(api.router)
        app.state.context = api.Context(pool)
        async with internal_server(settings.internal_host, settings.internal_port, {}):
            await until_signalled(http_server(app, settings.host, settings.port))


async def _worker(settings: Settings) -> None:
    async with open_pool(settings.database, size=2) as pool:
        taking_in = consumer(settings, pool)
        async with internal_server(settings.internal_host, settings.internal_port, taking_in.checks()):
            await until_signalled(taking_in.run)
