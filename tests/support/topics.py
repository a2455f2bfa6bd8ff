"""Topics as a test wants to find them, and what is in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from shared.kafka import Partition, Reader, Record
from tests.support.eventually import eventually


def delete_topics(bootstrap: str, names: Sequence[str] | None = None) -> None:
    """Deletes these topics, or all but Kafka's own, and returns when they are gone."""
    asyncio.run(adelete_topics(bootstrap, names))


async def adelete_topics(bootstrap: str, names: Sequence[str] | None = None) -> None:
    """`delete_topics` for tests on a loop."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        present = await admin.list_topics()
        doomed = {name for name in present if not name.startswith("__") and (names is None or name in names)}
        if doomed:
            await admin.delete_topics(sorted(doomed))

        async def gone() -> bool:
            return not doomed & set(await admin.list_topics())

        await eventually(gone)
    finally:
        await admin.close()


async def read_topic(bootstrap: str, topic: str) -> dict[int, list[Record]]:
    """All committed records of a topic by partition, up to its end as it is now."""
    reader = await Reader.open(bootstrap, [topic])
    try:
        bounds = await reader.bounds(reader.assignment())
        found: dict[int, list[Record]] = {partition.partition: [] for partition in bounds}
        for partition, (begin, _) in bounds.items():
            reader.seek(partition, begin)

        async def complete() -> bool:
            for partition, records in (await reader.fetch(timeout_ms=100)).items():
                found[partition.partition] += records
            return all([await reader.position(partition) >= end for partition, (_, end) in bounds.items()])

        await eventually(complete)
        return found
    finally:
        await reader.close()


async def ends_of(bootstrap: str, topic: str) -> dict[Partition, int]:
    """By partition the offset after the last committed record."""
    reader = await Reader.open(bootstrap, [topic])
    try:
        return {partition: end for partition, (_, end) in (await reader.bounds(reader.assignment())).items()}
    finally:
        await reader.close()


def decoded(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records' events."""
    return [json.loads(record.value) for record in records if record.value is not None]
