"""A transaction's records before it begins: what can be known of them without it.

Of request logs that is all but the storing itself: their records are read, compared with the marks, and added to the
handler's work, while the transaction before is under way. The marks are those of memory; they are true as long as the
partition is held (`positions.Held`), and each batch takes along how they are after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from shared.consumer import intake, store
from shared.consumer.intake import Intake, Kind, LogMark
from shared.consumer.positions import Held
from shared.consumer.records import Fetched, read_logs
from shared.consumer.store import Offset
from shared.consumer.transaction import Subscription, Work
from shared.kafka import Partition, Record
from shared.postgres import Pool

_SLICE = 250
"""Records between two looks at what else goes on: of the transaction before, mostly. About a millisecond."""


@dataclass
class Prepared:
    """What a transaction does with request logs' records of one topic. `marks` are those that change."""

    work: Work
    part: Intake = field(default_factory=Intake)
    marks: dict[tuple[str, int], LogMark] = field(default_factory=dict)


@dataclass
class Batch:
    """What one transaction takes: of some topics prepared, of others as it was read. `careful`: one by one where need be.

    Its partitions go on from where they were `before` when it is stored, to `after` if nothing stops them.
    """

    held: dict[Partition, Held]
    before: dict[Partition, Offset]
    after: dict[Partition, Offset]
    records: int
    read: dict[str, dict[Partition, list[Record]]]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    careful: bool = False

    @classmethod
    def of(cls, ready: Mapping[Partition, Held], fetched: Fetched, *, careful: bool = False) -> Batch:
        """A batch in which nothing is prepared."""
        held = {partition: ready[partition] for partition in fetched}
        before = {partition: each.at for partition, each in held.items()}
        after = {p: before[p].moved(records[-1].offset + 1) for p, records in fetched.items()}
        read: dict[str, dict[Partition, list[Record]]] = {}
        for partition, records in fetched.items():
            read.setdefault(partition.topic, {})[partition] = records
        return cls(held, before, after, sum(map(len, fetched.values())), read, careful=careful)

    async def prepare(self, pool: Pool, subscriptions: Collection[Subscription]) -> None:
        """Does what can be done ahead. What of it fails leaves the marks of its partitions untrue."""
        now = datetime.now(UTC)
        for subscription in subscriptions:
            if subscription.kind is Kind.MARKS and (fetched := self.read.pop(subscription.topic.name, None)):
                made = self.prepared[subscription.topic.name] = Prepared(subscription.work())
                for partition, records in fetched.items():
                    await _prepare(made, partition, records, self.held[partition].marks, pool, now)


async def _prepare(
    made: Prepared, partition: Partition, records: list[Record], marks: dict[str, LogMark], pool: Pool, now: datetime
) -> None:
    seen: set[str] = set()
    for start in range(0, len(records), _SLICE):
        seen |= await _slice(made, partition, records[start : start + _SLICE], marks, pool, now)
        await asyncio.sleep(0)
    for log in seen:
        if (mark := marks[log]).changed:
            made.marks[log, partition.partition] = replace(mark)
            mark.changed = False


async def _slice(
    made: Prepared, partition: Partition, records: list[Record], marks: dict[str, LogMark], pool: Pool, now: datetime
) -> set[str]:
    """Takes some records; the logs that they are of."""
    read = read_logs(records)
    await _load(marks, partition, read.logs, pool)
    taken = intake.by_marks(made.part, partition, read, marks, now)
    made.part.taken += len(taken)
    made.part.owners |= {f"owner-{event.data.owner_id}" for event in taken[::50]}
    made.work.add(taken)
    return read.logs


async def _load(marks: dict[str, LogMark], partition: Partition, logs: Collection[str], pool: Pool) -> None:
    if missing := {(log, partition.partition) for log in logs if log not in marks}:
        async with pool.connection() as connection:
            loaded = await store.load_marks(connection, missing)
        marks |= {log: mark for (log, _), mark in loaded.items()}
