"""A Kafka of one test's own, to be killed, and to be replaced by an empty one at the same address."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from testcontainers.core.container import DockerContainer

from deploy.local import child
from deploy.local.directory import Directory
from deploy.local.jars import kafka_jars
from deploy.local.kafka import Kafka
from deploy.local.ports import Ports, reserved
from deploy.local.supervisor import Supervisor
from shared.kafka import cluster_id
from tests.support.containers import kafka_container
from tests.support.eventually import eventually
from tests.support.stack import CONTAINERS


class Broker(Protocol):
    """One broker. Its address stays."""

    @property
    def address(self) -> str:
        """Where clients find it."""
        ...

    async def start(self) -> None:
        """Starts it over what data there is; returns when it answers."""
        ...

    def kill(self) -> None:
        """Kills it, if it runs."""
        ...

    def wipe(self) -> None:
        """Makes it another, empty cluster; to be called between `kill` and `start`."""
        ...


class LocalBroker:
    """A broker as a child process."""

    def __init__(self, directory: Path, ports: Ports) -> None:
        self._directory = directory
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None
        self._kafka = self._cluster()

    @property
    def address(self) -> str:
        return self._kafka.address

    async def start(self) -> None:
        place = Directory(self._directory)
        place.create()
        supervisor = Supervisor(place, lambda _: None)
        await asyncio.to_thread(lambda: asyncio.run(self._kafka.prepare(supervisor.run)))
        self._run(place.log("kafka"))
        await eventually(lambda: cluster_id(self.address), 60, interval=0.2)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self._directory / "kafka", ignore_errors=True)
        self._kafka = self._cluster()

    def _run(self, log: Path) -> None:
        keep = (os.getpid(), int(signal.SIGKILL), -1, -1, -1)
        command = (sys.executable, "-I", "-S", child.__file__, *map(str, keep), *self._kafka.spec().command)
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)

    def _cluster(self) -> Kafka:
        name = urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode().replace("-", "a")
        ports = self._ports
        return Kafka(
            self._directory / "kafka", ports["kafka"], ports["kafka-controller"], name, kafka_jars(lambda _: None)
        )


class ContainerBroker:
    """A broker in a container."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._container: DockerContainer | None = None

    async def start(self) -> None:
        if self._container is None:
            self._container = kafka_container(self._port).start()
        else:
            self._container.get_wrapped_container().start()
        await eventually(lambda: cluster_id(self.address), 60, interval=0.2)

    def kill(self) -> None:
        if self._container is not None:
            self._container.get_wrapped_container().kill()

    def wipe(self) -> None:
        if self._container is not None:
            self._container.stop()
            self._container = None


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Broker]:
    """A broker that runs as long as the context lives."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test's
    with reserved(("kafka", "kafka-controller"), 0) as ports:
        broker = ContainerBroker(ports["kafka"]) if CONTAINERS else LocalBroker(directory, ports)
        try:
            await broker.start()
            yield broker
        finally:
            broker.kill()
            broker.wipe()
