"""PostgreSQL and Kafka of one directory; `python -m deploy.local.servers DIR` runs them alone, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.local import environment
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.jars import kafka_jars
from deploy.local.kafka import Kafka
from deploy.local.ports import Ports, reserved
from deploy.local.postgres import Postgres
from deploy.local.state import State, load, save
from deploy.local.supervisor import Report, Supervisor

PORT_NAMES = ("postgres", "kafka", "kafka-controller")

_SERVER_SECONDS = 60.0
"""Both are up in two seconds; recovery after a crash of a busy one takes longer."""


@dataclass(frozen=True)
class Servers:
    """The two servers of a stack."""

    postgres: Postgres
    kafka: Kafka

    @classmethod
    def of(cls, directory: Directory, state: State, ports: Ports, jars: Path) -> Servers:
        """The servers of this directory on these ports."""
        return cls(
            Postgres(directory.postgres, ports["postgres"], state.passwords["postgres"]),
            Kafka(directory.kafka, ports["kafka"], ports["kafka-controller"], state.cluster_id, jars),
        )

    async def start(self, supervisor: Supervisor) -> None:
        """Start both, side by side, and wait until they are ready."""
        await asyncio.gather(self.start_postgres(supervisor), self.start_kafka(supervisor))

    async def start_postgres(self, supervisor: Supervisor) -> None:
        """Make its data directory if needed, start it, and wait until it is ready."""
        await self.postgres.prepare(supervisor.run)
        await supervisor.start((self.postgres.spec(),), _SERVER_SECONDS)

    async def start_kafka(self, supervisor: Supervisor) -> None:
        """Make its data directory if needed, start it, and wait until it is ready."""
        await self.kafka.prepare(supervisor.run)
        await supervisor.start((self.kafka.spec(),), _SERVER_SECONDS)


def run_alone(directory: Directory, report: Report) -> None:
    """Run the servers until SIGTERM or SIGINT; `<dir>/env` names the administrator's DSN and Kafka's address."""
    directory.create()
    with directory.held():
        jars = kafka_jars(report)
        state = load(directory)
        with reserved(PORT_NAMES, state.block) as ports:
            state.block = ports.block
            save(directory, state)
            servers = Servers.of(directory, state, ports, jars)
            addresses = {"KEYLEDGER_POSTGRES": servers.postgres.dsn(), "KEYLEDGER_KAFKA": servers.kafka.address}
            environment.write(directory.env, addresses)
            asyncio.run(_run(servers, Supervisor(directory, report)))


async def _run(servers: Servers, supervisor: Supervisor) -> None:
    supervisor.end_on_signals()
    try:
        await servers.start(supervisor)
        await supervisor.until_all_ready(_SERVER_SECONDS)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return
    finally:
        await supervisor.stop()


def main() -> None:
    """Entry point. Exit code 1, with the reason on stderr, if the servers can't be run."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        run_alone(Directory(Path(sys.argv[1])), logging.getLogger("keyledger").info)
    except StackError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
