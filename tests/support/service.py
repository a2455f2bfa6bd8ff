"""Processes of a service as they run in earnest, each with its log in a file, and their API as a caller behind the edge sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import psycopg

from shared.events.topics import Topic
from shared.kafka import ensure_topics
from shared.settings import Base, ServiceSettings
from tests.support.eventually import eventually_sync
from tests.support.identity import Signer
from tests.support.stack import Servers
from tests.support.topics import delete_topics

S = TypeVar("S", bound=ServiceSettings)
REQUEST_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(command: Sequence[str], port: int, log: Path, variables: Mapping[str, str] = os.environ) -> Iterator[int]:
    """A process for as long as the context lives, once its port is open; gives its id."""
    with log.open("wb") as output:
        environment = {**variables, "PYTHONUNBUFFERED": "1"}
        running = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        eventually_sync(lambda: _answers(running, port, log), 30)
        yield running.pid
    finally:
        running.terminate()
        running.wait(timeout=30)


def _answers(running: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    if running.poll() is not None:
        raise SystemExit(f"error: {running.args!r} ended with {running.returncode}:\n{log.read_text()}")
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


@contextmanager
def process(name: str, role: str, environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m services.<name> <role>`, ready, until the context ends: then it must end in order."""
    internal = free_port()
    variables = os.environ | dict(environment) | {"KEYLEDGER_INTERNAL_PORT": str(internal)}
    with log.open("ab") as output:
        command = (sys.executable, "-m", f"services.{name}", role)
        running = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    try:
        eventually_sync(lambda: _ready(running, internal, log))
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        code = running.wait(timeout=30)
    assert code in (0, -signal.SIGKILL), log.read_text()


def _ready(running: subprocess.Popen[bytes], internal: int, log: Path) -> bool:
    if running.poll() is not None:
        raise SystemExit(f"it ended with {running.returncode}: {log.read_text()}")
    return httpx2.get(f"http://127.0.0.1:{internal}/readyz").status_code == 200


@dataclass(frozen=True)
class Service:
    """A service with its own database: API and, if it was asked for, worker."""

    url: str
    database: str
    kafka: str
    signer: Signer
    logs: Path

    def settings(self, kind: type[S]) -> S:
        """The settings that the processes have, for what runs in the test itself."""
        return kind(kafka=self.kafka, database=self.database)

    def client(self, owner_id: int, key_id: int, *permissions: str) -> httpx2.Client:
        """A caller, as the edge passes it on."""
        headers = {
            "Keyledger-Identity": self.signer.token(owner_id, key_id, *permissions),
            "X-Request-ID": REQUEST_ID,
        }
        return httpx2.Client(base_url=self.url, headers=headers, timeout=20.0)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database answers to its own role."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def log(self, role: str) -> str:
        """What the process of this role wrote."""
        return (self.logs / f"{role}.log").read_text()


@contextmanager
def service(
    name: str,
    servers: Servers,
    directory: Path,
    *,
    worker: bool = True,
    environment: Mapping[str, str] | None = None,
    topics: Sequence[Topic] = (),
) -> Iterator[Service]:
    """The service on an empty database and a Kafka that has only these topics, which other services would make."""
    with ExitStack() as stack:
        delete_topics(servers.kafka)
        asyncio.run(ensure_topics(Base(kafka=servers.kafka), topics))
        database = stack.enter_context(servers.fresh_database())
        signer, port, prefix = Signer(), free_port(), f"KEYLEDGER_{name.upper()}"
        variables = {
            "KEYLEDGER_KAFKA": servers.kafka,
            "KEYLEDGER_IDENTITY_PUBLIC_KEYS": str(signer.public_keys(directory / "identity.pem")),
            f"{prefix}_DATABASE": database,
            f"{prefix}_PORT": str(port),
            **(environment or {}),
        }
        command = (sys.executable, "-m", f"services.{name}", "migrate")
        subprocess.run(command, env=os.environ | variables, check=True, timeout=60)
        for role in ["worker", "api"] if worker else ["api"]:
            stack.enter_context(process(name, role, variables, directory / f"{role}.log"))
        made = Service(f"http://127.0.0.1:{port}", database, servers.kafka, signer, directory)
        eventually_sync(lambda: httpx2.get(f"{made.url}/openapi.json").status_code == 200)
        yield made
