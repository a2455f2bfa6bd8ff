"""PostgreSQL and Kafka of a test run taken away, and given back before the next test."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from tests.support.eventually import eventually, eventually_sync
from tests.support.stack import Servers


@contextmanager
def stopped(servers: Servers, name: str) -> Iterator[None]:
    """The server `name` is down, and nobody starts it, until the context ends; then returns when it is ready again."""
    supervisor, before = servers.directory.holder(), servers.pid(name)
    assert supervisor is not None
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(before, signal.SIGINT)
        eventually_sync(lambda: not _listening(servers, name))
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)

    eventually_sync(lambda: _ready_again(servers, name, before), 60)


async def crash(servers: Servers, name: str) -> None:
    """Kills the server `name`; returns when it is ready again."""
    before = servers.pid(name)
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: _ready_again(servers, name, before), 60)


def _ready_again(servers: Servers, name: str, before: int) -> bool:
    row = next(row for row in servers.status()["processes"] if row["name"] == name)
    return bool(row["ready"] and row["pid"] != before)


def _listening(servers: Servers, name: str) -> bool:
    address = httpx2.URL(servers.postgres_dsn_admin) if name == "postgres" else httpx2.URL(f"tcp://{servers.kafka}")
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port or 0)) == 0
