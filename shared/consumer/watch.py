"""What goes on beside a consumer: how far it is, whether its topics are still those, and what is cleared away in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg
import structlog
from prometheus_client import Gauge
from psycopg_pool import PoolTimeout

from shared.consumer import dead_letters, store
from shared.consumer.positions import Positions
from shared.kafka import KafkaUnavailable, Reader
from shared.postgres import Pool

_MEASURE_EVERY = 1.0
_HINT_EVERY = 5.0
_LOOK_EVERY = 10.0
_CLEAN_EVERY = 600.0
_FIRST_CLEAN = 60.0
_GAP_ALARM = 60.0
_log = structlog.get_logger()
_lag = Gauge("keyledger_consumer_lag", "Records between the consumer's position and the end", ["topic", "partition"])
_stopped = Gauge("keyledger_consumer_stopped_partitions", "Partitions that are not read on for the time being")
_gaps = Gauge("keyledger_consumer_open_gaps", "Request logs with records missing, by partition")
_gap_age = Gauge("keyledger_consumer_oldest_gap_seconds", "For how long the oldest gap has been open")


async def watch(
    reader: Reader, pool: Pool, positions: Positions, still_the_same: Callable[[], Awaitable[None]]
) -> None:
    """For ever, or until `still_the_same` raises. That the database is away is told by every transaction, not here."""
    hinted = looked = time.monotonic()
    cleaned = looked - _CLEAN_EVERY + _FIRST_CLEAN
    while True:
        await asyncio.sleep(_MEASURE_EVERY)
        await _measure(reader, positions)
        now = time.monotonic()
        if positions.ready and now - hinted > _HINT_EVERY:
            hinted = now
            await reader.commit({partition: held.stored for partition, held in positions.ready.items()})
        with suppress(psycopg.Error, PoolTimeout):
            if now - looked > _LOOK_EVERY:
                looked = now
                await still_the_same()
                await _look_for_gaps(pool)
            if now - cleaned > _CLEAN_EVERY:
                cleaned = now
                await _clean(pool)


def forget() -> None:
    """No partition is this consumer's any more."""
    _lag.clear()


async def _measure(reader: Reader, positions: Positions) -> None:
    _stopped.set(len(positions.halted))
    for partition in [*positions.ready, *positions.halted]:
        with suppress(KafkaUnavailable):  # no longer assigned
            _lag.labels(*partition).set(max(0, reader.end(partition) - await reader.position(partition)))


async def _clean(pool: Pool) -> None:
    async with pool.connection() as connection:
        if gone := await dead_letters.clean(connection):
            _log.warning("dead letters were deleted, too old or too much", letters=gone)


async def _look_for_gaps(pool: Pool) -> None:
    async with pool.connection() as connection:
        count, age = await store.open_gaps(connection)
    _gaps.set(count)
    _gap_age.set(age)
    if age > _GAP_ALARM:
        _log.error("records of request logs are missing", logs=count, oldest_seconds=round(age))
