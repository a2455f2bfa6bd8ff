"""The whole stack of one directory: what is started in which order, until it is ready, and until it is told to end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.local import environment, identity, migrations, platform, ports, routes, servers, services
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.jars import kafka_jars
from deploy.local.servers import Servers
from deploy.local.services import Services
from deploy.local.state import SERVICES, load, save
from deploy.local.supervisor import Report, Supervisor
from shared.ids import Secret, new_secret

_READY_SECONDS = 180.0
"""All processes start at once; on a slow machine they wait for each other's share of it."""

_KEY = "KEYLEDGER_API_KEY"
LEAST_FILES = 1024


@dataclass(frozen=True)
class Options:
    """The edge's port (0: one that is free, and the same at the next start), a TOML file of the user's own routes, and
    whether sample traffic runs."""

    port: int = 8080
    routes: Path | None = None
    sample: bool = False


def run(directory: Directory, options: Options, report: Report, ready: Callable[[], None]) -> None:
    """Run the stack until SIGTERM or SIGINT; `ready` is called once, when every part is. Raises StackError if it can't be."""
    if why := platform.unsupported():
        raise StackError(why)
    _allow_open_files()
    if options.routes:
        routes.checked(options.routes)
    directory.create()
    with directory.held():
        jars = kafka_jars(report)
        state = load(directory)
        with ports.reserved((*servers.PORT_NAMES, *services.PORT_NAMES), state.block) as chosen:
            state.block = chosen.block
            save(directory, state)
            both = Servers.of(directory, state, chosen, jars)
            edge_port = options.port or chosen["edge"]
            _require_free(edge_port)
            file = options.routes
            if options.sample:
                file = routes.with_sample(directory, file, chosen["sample-upstream"])
            stack = _Stack(Services(directory, state, chosen, both, edge_port, file), options.sample, report)
            asyncio.run(stack.run(ready))


class _Stack:
    def __init__(self, parts: Services, sample: bool, report: Report) -> None:
        self._parts = parts
        self._sample = sample
        self._report = report
        self._directory = parts.directory

    async def run(self, ready: Callable[[], None]) -> None:
        supervisor = Supervisor(self._directory, self._report, self._parts.url)
        supervisor.end_on_signals()
        try:
            await self._start(supervisor)
            ready()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._report("Ending all processes ...")
        finally:
            await supervisor.stop()

    async def _start(self, supervisor: Supervisor) -> None:
        parts = self._parts
        secrets = self._directory.secrets
        identity.ensure(secrets / "identity.pem", secrets / "identity-public.pem")
        await asyncio.gather(parts.servers.start_kafka(supervisor), self._databases(supervisor))
        await supervisor.start(parts.processes(), _READY_SECONDS)
        if self._sample:
            first_key = environment.read(self._directory.env)[_KEY]
            await supervisor.start(parts.sample(first_key), _READY_SECONDS)
        await supervisor.until_all_ready(_READY_SECONDS)

    async def _databases(self, supervisor: Supervisor) -> None:
        """PostgreSQL with all that the services expect in it; Kafka takes longer to start than this."""
        parts = self._parts
        secret = self._write_environment()
        await parts.servers.start_postgres(supervisor)
        passwords = {name: parts.state.passwords[name] for name in SERVICES}
        await parts.servers.postgres.create_databases(passwords)
        await self._migrate(supervisor)
        if parts.state.first_key != secret.hash.hex():
            await supervisor.run(parts.first_key())
            self._report("the first key is made")

    async def _migrate(self, supervisor: Supervisor) -> None:
        state, wanted = self._parts.state, migrations.fingerprint()
        if state.migrations == wanted:
            return
        await asyncio.gather(*(supervisor.run(job) for job in self._parts.migrations()))
        state.migrations = wanted
        save(self._directory, state)
        self._report("the databases are migrated")

    def _write_environment(self) -> Secret:
        """The secret is on the disk before any process starts: what creates the key may die at any point."""
        held = environment.read(self._directory.env).get(_KEY)
        secret = Secret(held) if held else new_secret("live")
        addresses = self._parts.addresses()
        environment.write(self._directory.env, {"KEYLEDGER_URL": self._parts.url, _KEY: secret.text, **addresses})
        return secret


def _allow_open_files() -> None:
    """Each connection is an open file: let all processes have what the system would give them, not what a shell starts with.

    Raises StackError where even that is too little for Kafka's own files.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < LEAST_FILES and hard != resource.RLIM_INFINITY:
        raise StackError(
            f"A process may open only {hard} files here, and Kafka needs {LEAST_FILES}. Raise the hard limit (ulimit -Hn)."
        )
    # Refused where the system's own bound was lowered below the hard limit: then the soft one has to do.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _require_free(port: int) -> None:
    if not ports.becomes_free(port):
        holder = ports.holder(port) or "another user's program"
        raise StackError(f"Port {port} is used by {holder}. Choose another with --port, or any with --port 0.")


def main() -> None:
    """`python -m deploy.local.stack DIR`, with options as `keyledger up`: the stack in the background, its news on stderr."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S", level=logging.WARNING)
    log = logging.getLogger("keyledger")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--routes", type=Path)
    parser.add_argument("--sample", action="store_true")
    given = parser.parse_args()
    try:
        run(
            Directory(given.directory),
            Options(given.port, given.routes, given.sample),
            log.info,
            lambda: log.info("everything is ready"),
        )
    except StackError as error:
        log.error(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
