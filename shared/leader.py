"""One of several like processes does a work: the one that publishes a service's log, or its totals.

The leader holds a session advisory lock on its only connection, which the server ends when it was not used for three
seconds, and a producer with a fixed transactional id. A leader that was stopped and wakes up finds its connection gone,
and whatever its producer still holds is refused by the broker, because its successor has opened the same id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import psycopg
import structlog
from prometheus_client import Gauge

from shared.events.topics import Topic
from shared.kafka import KafkaUnavailable, Producer, ensure_topics
from shared.postgres import AWAY, Connection, connect
from shared.settings import Base
from shared.telemetry import Check

_AGAIN = 0.5
_FAREWELL = 5.0
_PATIENCE = (15.0, 60.0)
_STALE = 15.0
_log = structlog.get_logger()
_leads = Gauge("keyledger_leader", "1 while this process is the one that does the work", ["work"])

Term = Callable[[Connection, Producer, asyncio.Event], Awaitable[None]]


class Leader:
    """Runs terms of `work` as long as it may lead; loses and regains leadership, database and Kafka without help.

    `name` is also the transactional id.
    """

    def __init__(self, settings: Base, dsn: str, name: str, lock: int, topics: Sequence[Topic]) -> None:
        self._check = Check(False, "starting")
        self._progress = time.monotonic()
        self._producer: Producer | None = None
        self._settings = settings
        self._dsn = dsn
        self._name = name
        self._lock = lock
        self._topics = topics
        self._patience = _PATIENCE[0]

    @property
    def check(self) -> Check:
        """For readiness: what the work said last, unless since then, and since the last transaction, too long has passed."""
        still = time.monotonic() - self._progress
        return (
            Check(False, f"nothing has gone on for {still:.0f} s")
            if self._check.ready and still > _STALE
            else self._check
        )

    @check.setter
    def check(self, check: Check) -> None:
        self._check, self._progress = check, time.monotonic()

    async def run(self, work: Term, stop: asyncio.Event) -> None:
        """Until `stop`; a term under way has some seconds to end by itself. Failures are logged, shown, and tried again."""
        stopped, leading = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self._lead(work, stop))
        try:
            await asyncio.wait([stopped, leading], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([leading], timeout=_FAREWELL)
        finally:
            stopped.cancel()
            leading.cancel()
            with suppress(asyncio.CancelledError):
                await leading

    async def _lead(self, work: Term, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._term(work, stop)
            except (KafkaUnavailable, psycopg.Error) as error:
                _log.warning("leader interrupted", work=self._name, error=str(error))
                self.check = Check(False, str(error))
            finally:
                _leads.labels(self._name).set(0)
            await _pause(stop, _AGAIN)

    async def _term(self, work: Term, stop: asyncio.Event) -> None:
        async with await connect(self._dsn, idle_session_timeout="3s") as connection:
            if not await self._elected(connection, stop):
                return
            # However long Kafka takes: only a process that is stopped loses the lock.
            async with self._used_each_second(connection):
                await ensure_topics(self._settings, self._topics)
                producer = await Producer.open(self._settings.kafka, self._name, patience=self._patience)
                self._producer = producer
                try:
                    await work(connection, producer, stop)
                finally:
                    # Longer each time: a broker that is only slow must not get the same records again and again.
                    factor = 0.5 if producer.committed else 2.0
                    self._patience = min(max(factor * self._patience, _PATIENCE[0]), _PATIENCE[1])
                    self._producer = None
                    await producer.abandon()

    async def _elected(self, connection: Connection, stop: asyncio.Event) -> bool:
        while not stop.is_set():
            row = await (await connection.execute("SELECT pg_try_advisory_lock(%s) AS got", [self._lock])).fetchone()
            if row and row["got"]:
                _leads.labels(self._name).set(1)
                if self.check.ready:
                    self.check = Check(False, "taking over")
                return True
            self.check = Check(True, "standing by")
            await _pause(stop, 1.0)
        return False

    @asynccontextmanager
    async def _used_each_second(self, connection: Connection) -> AsyncIterator[None]:
        """Uses the connection each second beside what else uses it: the server ends one that is idle for three."""

        async def use() -> None:
            committed = 0
            while True:
                await asyncio.sleep(1.0)
                await connection.execute("SELECT 1")
                if self._producer and self._producer.committed != committed:
                    committed, self._progress = self._producer.committed, time.monotonic()

        task = asyncio.create_task(use())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, *AWAY):
                await task


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
