"""A team's own ledger: every metered request and the state of every key, exactly once, in SQLite.

    KEYLEDGER_KAFKA=127.0.0.1:9092 python consume.py ledger.sqlite

Needs aiokafka (0.14 or newer). It may be killed at any instant: rows, and how far was read, are one SQLite transaction,
and what comes again is known by its id or version. So Kafka's own commits and consumer groups are not used.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

TOPICS = ("request-events", "key-events")
STATUS = {
    "created": "active",
    "reactivated": "active",
    "resumed": "active",
    "deactivated": "inactive",
    "suspended": "suspended",
    "revoked": "revoked",
    "deleted": "deleted",
}
TABLES = """
CREATE TABLE IF NOT EXISTS offsets (
  cluster TEXT, topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, PRIMARY KEY (cluster, topic, partition));
CREATE TABLE IF NOT EXISTS requests (
  id TEXT PRIMARY KEY, time TEXT, key_id INTEGER, owner_id INTEGER, method TEXT, endpoint TEXT, status_code INTEGER,
  response_time REAL, decision TEXT, request_id TEXT);
CREATE TABLE IF NOT EXISTS streams (subject TEXT PRIMARY KEY, version INTEGER NOT NULL, name TEXT, status TEXT);
CREATE TABLE IF NOT EXISTS unreadable (topic TEXT, partition INTEGER, at INTEGER, value BLOB, error TEXT);
"""
Batch = Mapping[TopicPartition, Sequence["ConsumerRecord[bytes, bytes]"]]
# What an event that is not as its schema says may lead to, here or in SQLite.
UNREADABLE = (
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError),
    *(sqlite3.InterfaceError, sqlite3.ProgrammingError),
)
log = logging.getLogger("consume")


class MissingError(Exception):
    """Records that were never read are gone, or have not come: going on would make the ledger wrong."""


def open_ledger(path: str) -> sqlite3.Connection:
    """The database with its tables. A transaction that was committed is on the disk."""
    ledger = sqlite3.connect(path, isolation_level=None, timeout=30)
    ledger.execute("PRAGMA journal_mode = WAL")
    ledger.execute("PRAGMA synchronous = FULL")
    ledger.executescript(TABLES)
    return ledger


def store(ledger: sqlite3.Connection, cluster: str, batch: Batch) -> None:
    """Stores all of the batch and how far it goes, or nothing."""
    ledger.execute("BEGIN IMMEDIATE")
    with ledger:
        for (topic, partition), records in batch.items():
            for record in records:
                try:
                    store_event(ledger, topic, json.loads(record.value or b""))
                except UNREADABLE as error:
                    what = (topic, partition, record.offset, record.value, repr(error))
                    ledger.execute("INSERT INTO unreadable VALUES (?, ?, ?, ?, ?)", what)
            ledger.execute(
                "INSERT OR REPLACE INTO offsets VALUES (?, ?, ?, ?)",
                (cluster, topic, partition, records[-1].offset + 1),
            )


def store_event(ledger: sqlite3.Connection, topic: str, event: dict[str, Any]) -> None:
    """Stores an event that is new; types and fields that nobody here knows are left alone."""
    if topic == "key-events":
        store_change(ledger, event)
    elif event["type"] == "request.metered":
        data = event["data"]
        names = ("key_id", "owner_id", "method", "endpoint", "status_code", "response_time", "decision", "request_id")
        row = (event["id"], event["time"], *(data[name] for name in names))
        ledger.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def store_change(ledger: sqlite3.Connection, event: dict[str, Any]) -> None:
    """Applies a change to its key or owner: the version after the one that is held, and no other."""
    subject, version = event["subject"], event["streamversion"]
    found = ledger.execute("SELECT version FROM streams WHERE subject = ?", (subject,)).fetchone()
    held = found[0] if found else 0
    if version <= held:
        return
    if version > held + 1:
        raise MissingError(f"{subject} goes on with version {version}, {held} is held")
    name, status = event["data"].get("name"), STATUS.get(event["type"].partition(".")[2])
    ledger.execute(
        "INSERT INTO streams VALUES (?, ?, ?, ?) ON CONFLICT (subject) DO UPDATE SET version = excluded.version,"
        " name = coalesce(excluded.name, name), status = coalesce(excluded.status, status)",
        (subject, version, name, status),
    )


def starts(
    ledger: sqlite3.Connection, cluster: str, bounds: Mapping[TopicPartition, tuple[int, int]]
) -> dict[TopicPartition, int]:
    """Where to read each partition on; `MissingError` when what was not read yet has expired.

    In another cluster, or a partition that ends before what was read of it, everything is read again.
    """
    found = {}
    for partition, (first, end) in bounds.items():
        row = ledger.execute(
            "SELECT next_offset FROM offsets WHERE cluster = ? AND topic = ? AND partition = ?", (cluster, *partition)
        ).fetchone()
        held = row[0] if row and row[0] <= end else first
        if held < first:
            raise MissingError(f"{partition}: {held} to {first} are gone")
        found[partition] = held
    return found


async def describe(kafka: str) -> tuple[str, list[TopicPartition]]:
    """The cluster's id, and all partitions of the topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        cluster = str((await admin.describe_cluster())["cluster_id"])
        topics = await admin.describe_topics(list(TOPICS))
        return cluster, [TopicPartition(t["topic"], p["partition"]) for t in topics for p in t["partitions"]]
    finally:
        await admin.close()


async def consume(kafka: str, ledger: sqlite3.Connection) -> None:
    """Reads until something fails."""
    cluster, partitions = await describe(kafka)
    if {partition.topic for partition in partitions} != set(TOPICS):
        raise KafkaError("a topic does not exist yet")
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(
        bootstrap_servers=kafka,
        enable_auto_commit=False,
        auto_offset_reset="none",
        # What a relay did not commit was never said.
        isolation_level="read_committed",
    )
    try:
        await consumer.start()
        consumer.assign(partitions)
        first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        positions = starts(ledger, cluster, {each: (first[each], end[each]) for each in partitions})
        for partition, offset in positions.items():
            consumer.seek(partition, offset)
        log.info("reading")
        while True:
            batch = await consumer.getmany(timeout_ms=500, max_records=1000)
            for partition, records in batch.items():
                # Only transactions and compaction leave holes, and this topic has neither.
                if partition.topic == "request-events" and records[0].offset != positions[partition]:
                    raise KafkaError(f"{partition}: {records[0].offset} came instead of {positions[partition]}")
                positions[partition] = records[-1].offset + 1
            if batch:
                store(ledger, cluster, batch)
    finally:
        await consumer.stop()


async def main(kafka: str, path: str) -> None:
    """Reads for ever; when Kafka fails, from the stored offsets again."""
    ledger = open_ledger(path)
    while True:
        try:
            await consume(kafka, ledger)
        except KafkaError as error:
            log.warning("interrupted: %s", error)
            await asyncio.sleep(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    asyncio.run(main(os.environ["KEYLEDGER_KAFKA"], sys.argv[1]))
