"""A service's worker processes, and an edge agent that never gives up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from shared.events.topics import REQUEST_EVENTS
from shared.kafka import KafkaUnavailable, Producer
from tests.integration.usage.traffic import Log, Written, ship
from tests.support.eventually import eventually


@dataclass
class Worker:
    """One process of `python -m services.<name> worker`."""

    process: subprocess.Popen[bytes]
    log: Path

    def checks(self) -> dict[str, Any]:
        """As its /readyz tells them; the port is in no file, so it is asked of the kernel."""
        return dict(httpx2.get(f"http://127.0.0.1:{self._port()}/readyz", timeout=2.0).json())

    def _port(self) -> int:
        inodes = {link.readlink().name for link in Path(f"/proc/{self.process.pid}/fd").iterdir() if link.is_symlink()}
        for line in Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
                return int(parts[1].split(":")[1], 16)
        raise AssertionError("the worker does not listen yet")

    async def ready(self) -> None:
        await eventually(lambda: self.checks()["ready"], 60)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()


@dataclass
class Service:
    """A service with an empty database, its Kafka, and its workers."""

    name: str
    kafka: str
    database: str
    directory: Path
    workers: list[Worker] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        database = {f"KEYLEDGER_{self.name.upper()}_DATABASE": self.database}
        return os.environ | database | {"KEYLEDGER_KAFKA": self.kafka, "KEYLEDGER_INTERNAL_PORT": "0"}

    def migrate(self) -> None:
        subprocess.run([sys.executable, "-m", f"services.{self.name}", "migrate"], env=self.env, check=True)

    def start(self) -> Worker:
        log = self.directory / f"worker-{len(self.workers)}.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", f"services.{self.name}", "worker"]
            worker = Worker(subprocess.Popen(command, env=self.env, stdout=output, stderr=output), log)
        self.workers.append(worker)
        return worker

    def end(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.process.kill()
            worker.process.wait()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(psycopg.connect(self.database, autocommit=True)) as connection:
            return connection.execute(query.encode(), values).fetchall()


@dataclass
class Agent:
    """Ships a steady stream of several logs, again from before the last acknowledgement after each failure."""

    kafka: str
    sent: list[Written] = field(default_factory=list)
    failures: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def _run(self, stop: asyncio.Event) -> None:
        dice, producer = random.Random(11), None
        logs, unsent = [Log(), Log()], list[Written]()
        while unsent or not stop.is_set():
            if len(unsent) < 20_000 and not stop.is_set():
                unsent += [
                    dice.choice(logs).write(
                        dice.randint(1, 40), decision=dice.choice(["allowed", "allowed", "rate_limited"])
                    )
                    for _ in range(50)
                ]
            try:
                producer = producer or await Producer.open(self.kafka)
                again = self.sent[-100:] if dice.random() < 0.05 else []
                await ship(self.kafka, REQUEST_EVENTS.name, again + unsent, producer)
                self.sent += unsent
                unsent.clear()
            except KafkaUnavailable:
                self.failures += 1
                if producer:
                    await producer.abandon()
                    producer = None
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.02)
        if producer:
            await producer.abandon()

    async def settled(self, more: int = 500) -> None:
        """Waits until some more was shipped."""
        before = len(self.sent)
        await eventually(lambda: len(self.sent) >= before + more, 60)

    async def survives_kills(self, service: Service, dice: random.Random, kills: int) -> None:
        """Ships while workers of the service are killed at random moments, often before the next one is ready."""
        service.start()
        async with self.running():
            for _ in range(kills):
                await self.settled(dice.randint(50, 800))
                victims = [worker for worker in service.workers if worker.process.poll() is None]
                fresh = service.start()
                if dice.random() < 0.5:
                    await fresh.ready()
                dice.choice(victims).send(signal.SIGKILL)
