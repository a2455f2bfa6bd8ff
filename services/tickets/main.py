"""Composition root of the tickets service."""

from __future__ import annotations

import sys
from pathlib import Path

from services.tickets import api
from services.tickets.settings import Settings
from services.tickets.worker import PUBLICATION
from shared.http import create_app
from shared.postgres import MIGRATIONS, migrate, open_pool
from shared.process import http_server, run, until_signalled
from shared.relay import Relay
from shared.settings import load
from shared.telemetry import configure_logging, internal_server


def main() -> None:
    """Runs the role that the command line names."""
    settings = load(Settings)
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    configure_logging(settings.log_level, service="tickets", role=role)
    roles = {"migrate": _migrate, "api": _api, "worker": _worker}
    if role not in roles:
        raise SystemExit(f"usage: python -m services.tickets {'|'.join(roles)}")
    run(roles[role](settings))


async def _migrate(settings: Settings) -> None:
    await migrate(settings.database, [MIGRATIONS / "eventstore", Path(__file__).parent / "migrations"])


async def _api(settings: Settings) -> None:
    async with open_pool(settings.database) as pool:
        app = create_app("tickets", settings.identity_public_keys)
        app.include_router(api.router)
        app.state.context = api.Context(pool)
        async with internal_server(settings.internal_host, settings.internal_port, {}):
            await until_signalled(http_server(app, settings.host, settings.port))


async def _worker(settings: Settings) -> None:
    relay = Relay(settings, settings.database, PUBLICATION)
    async with internal_server(settings.internal_host, settings.internal_port, relay.checks()):
        await until_signalled(relay.run)
