"""Checks of what a stack holds and how it flows: topics, databases, consumers, the edge's copy of the keys and its request logs."""

from __future__ import annotations

import asyncio
import os

import psycopg

from deploy.doctor import Finding, error, ok, warning
from deploy.doctor.facts import TIMEOUT, Stack
from deploy.local.state import SERVICES
from shared.events import topics
from shared.kafka import KafkaUnavailable, cluster_id, partition_count
from shared.settings import Base

_STALE_SECONDS = 5.0
_LAG_RECORDS = 5000
_UNSHIPPED_SECONDS = 60.0
_TOPICS = (
    topics.KEY_EVENTS,
    topics.TICKET_EVENTS,
    topics.KEY_STATES,
    topics.REQUEST_EVENTS,
    topics.KEY_USAGE,
    topics.USAGE_MARKS,
    topics.EDGE_STATUS,
)


async def kafka(stack: Stack) -> list[Finding]:
    """The cluster is this stack's own, and its topics have the partitions that they were made with."""
    address = stack.variables["KEYLEDGER_KAFKA"]
    wanted = int(os.environ.get("KEYLEDGER_PARTITIONS", Base.model_fields["partitions"].default))
    try:
        async with asyncio.timeout(2 * TIMEOUT):
            cluster = await cluster_id(address)
            counts = {topic.name: await partition_count(address, topic.name) for topic in _TOPICS}
    except (KafkaUnavailable, TimeoutError) as problem:
        return [error("topics", f"Kafka can't be asked: {str(problem) or 'no answer in time'}", stack.logs("kafka"))]
    if cluster != stack.cluster:
        return [error("topics", f"Kafka's data is of another cluster ({cluster}, not {stack.cluster})")]
    missing = [name for name, count in counts.items() if not count]
    other = [f"{name} has {count}" for name, count in counts.items() if count not in (0, wanted)]
    if other:
        todo = "set KEYLEDGER_PARTITIONS to what the topics have: it can't change"
        return [error("topics", f"{', '.join(other)} partitions, not {wanted}", todo)]
    if missing:
        return [warning("topics", f"not made yet: {', '.join(missing)}", "their producers make them at their start")]
    return [ok("topics", f"{len(counts)}, with {wanted} partitions each")]


async def databases(stack: Stack) -> list[Finding]:
    """Each database as its own service reaches it, whether its log needs a repair, and what was put aside."""
    return [finding for name in SERVICES for finding in await asyncio.to_thread(_database, stack, name)]


def _database(stack: Stack, name: str) -> list[Finding]:
    check = f"database {name}"
    dsn = stack.variables[f"KEYLEDGER_{name.upper()}_DATABASE"]
    try:
        with psycopg.connect(dsn, connect_timeout=int(TIMEOUT), options="-c statement_timeout=5s") as connection:
            tables = {
                row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            }
            found = []
            if "log_head" in tables:
                found += _log_head(connection, check)
            if "dead_letters" in tables:
                found += _dead_letters(connection, check)
            return found or [ok(check, "reachable")]
    except psycopg.Error as problem:
        return [error(check, str(problem).strip(), stack.logs("postgres"))]


def _log_head(connection: psycopg.Connection, check: str) -> list[Finding]:
    row = connection.execute("SELECT repair_needed, h.position, r.position FROM log_head h, relay r").fetchone()
    assert row is not None
    why, position, published = row
    if why:
        todo = "its commands answer 503 until then; see repair_needed in docs/troubleshooting.md"
        return [error(check, f"its event log needs a repair: {why}", todo)]
    if position > published:
        return [
            warning(
                check, f"{position - published} events are not in Kafka yet", "again in some seconds: it should be 0"
            )
        ]
    return [ok(check, f"reachable; {position} events, all in Kafka")]


def _dead_letters(connection: psycopg.Connection, check: str) -> list[Finding]:
    row = connection.execute("SELECT count(*), max(error) FROM dead_letters WHERE done_at IS NULL").fetchone()
    if row is None or not row[0]:
        return []
    todo = "the records are in the table dead_letters, with the reason; nothing is lost, but not counted either"
    return [error(check, f"{row[0]} records could not be taken, such as: {row[1]}", todo)]


async def consumers(stack: Stack) -> list[Finding]:
    """What the workers have not taken yet, and partitions that they no longer read."""
    found = []
    for service in ("keys", "usage", "stats"):
        figures = await stack.figures(f"{service}-worker")
        lag = sum(figures.get("keyledger_consumer_lag", []))
        stopped = sum(figures.get("keyledger_consumer_stopped_partitions", []))
        gap = max(figures.get("keyledger_consumer_oldest_gap_seconds", []), default=0)
        name, logs = f"{service}-worker", stack.logs(f"{service}-worker")
        if stopped:
            found.append(error(name, f"reads {stopped:.0f} partitions no further", logs))
        if gap > _UNSHIPPED_SECONDS:
            found.append(error(name, f"records of a request log are missing for {gap:.0f} s", logs))
        if lag > _LAG_RECORDS:
            found.append(warning(name, f"{lag:.0f} records behind: figures are late, nothing is lost", logs))
    return found or [ok("consumers", "none is behind")]


async def edge(stack: Stack) -> list[Finding]:
    """How fresh the edge's copy of the keys is, and what it has not shipped to Kafka yet."""
    figures = {name: values[0] for name, values in (await stack.figures("edge")).items()}
    if "keyledger_edge_replica_age_seconds" not in figures:
        return [error("edge replica", "the edge does not tell of it", stack.logs("edge"))]
    age, unshipped = figures["keyledger_edge_replica_age_seconds"], figures["keyledger_edge_oldest_unshipped_seconds"]
    size = sum(path.stat().st_size for path in (stack.directory.edge / "logs").rglob("*") if path.is_file())
    found = []
    if age > _STALE_SECONDS:
        what = f"the last heartbeat is {age:.0f} s old: known keys go on, changes of keys do not arrive"
        found.append(error("edge replica", what, f"does Kafka run, and keys-worker? {stack.logs('keys-worker')}"))
    else:
        found.append(
            ok("edge replica", f"{figures['keyledger_edge_replica_held']:.0f} keys and owners, {age:.1f} s old")
        )
    if unshipped > _UNSHIPPED_SECONDS:
        what = f"{size // 1024} KB, the oldest record waits for {unshipped:.0f} s to be shipped"
        found.append(error("request log", what, f"does Kafka run? {stack.logs('edge')}"))
    else:
        found.append(ok("request log", f"{size // 1024} KB on disk, shipped"))
    return found
