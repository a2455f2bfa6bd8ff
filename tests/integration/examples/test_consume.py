"""A team's own consumer, killed again and again under traffic, counts exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.events.topics import KEY_EVENTS, REQUEST_EVENTS
from shared.kafka import Message, Partition, Producer, ensure_topics
from shared.partitions import partition_for
from shared.settings import Base
from tests.integration.usage.traffic import Log, ship
from tests.support.eventually import eventually

SCRIPT = Path(__file__).parents[3] / "examples" / "consume.py"
pytestmark = pytest.mark.anyio


class Team:
    """The consumer as a process of its own, and what is in its ledger."""

    def __init__(self, kafka: str, directory: Path) -> None:
        self.kafka = kafka
        self.path = directory / "ledger.sqlite"
        self._log = directory / "out.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"KEYLEDGER_KAFKA": self.kafka}
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), str(self.path)], env=environment, stdout=output, stderr=output
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        ledger = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=30)
        try:
            return ledger.execute(query).fetchall()
        finally:
            ledger.close()

    def count(self) -> int:
        return int(self.rows("SELECT count(*) FROM requests")[0][0])


@pytest.fixture
def team(kafka: str, tmp_path: Path) -> Iterator[Team]:
    running = Team(kafka, tmp_path)
    yield running
    running.kill()


def change(subject: str, version: int, kind: str, **data: Any) -> Message:
    event = {
        "specversion": "1.0",
        "id": f"{subject}-{version}",
        "source": "keyledger/keys",
        "type": kind,
        "time": datetime.now(UTC),
        "subject": subject,
        "datacontenttype": "application/json",
        "schemaversion": 1,
        "epoch": 1,
        "position": version,
        "streamversion": version,
        "data": data,
    }
    partition = Partition(KEY_EVENTS.name, partition_for(subject.encode(), 6))
    return Message(partition, subject.encode(), msgspec.json.encode(event))


async def test_killed_at_any_instant_it_counts_once(team: Team) -> None:
    await ensure_topics(Base(kafka=team.kafka), [REQUEST_EVENTS, KEY_EVENTS])
    relay = await Producer.open(team.kafka, "keyledger/keys")
    agent = await Producer.open(team.kafka)
    log = Log()
    shipped = []
    versions = dict.fromkeys([f"key-{n}" for n in range(1, 8)], 0)
    counted = 0
    team.start()
    try:
        for turn in range(60):
            written = [log.write(random.randint(1, 7)) for _ in range(100)]
            await ship(team.kafka, REQUEST_EVENTS.name, written, agent)
            shipped += written
            changes = []
            for subject in versions:
                versions[subject] += 1
                first = versions[subject] == 1
                kind = "key.created" if first else ("key.reactivated", "key.deactivated")[versions[subject] % 2]
                changes.append(change(subject, versions[subject], kind, **({"name": subject} if first else {})))
            await relay.transaction(changes)
            if turn % 10 == 5:
                # What an agent or a relay does that does not know whether its last batch arrived.
                await ship(team.kafka, REQUEST_EVENTS.name, shipped[-250:], agent)
                await relay.transaction(changes)
            if turn % 6 == 5:
                await eventually(lambda before=counted: team.count() > before, 60)
                await asyncio.sleep(random.uniform(0.0, 0.05))
                team.kill()
                counted = team.count()
                team.start()
        await ship(team.kafka, REQUEST_EVENTS.name, log.close(), agent)
    finally:
        await relay.abandon()
        await agent.abandon()

    def all_there() -> bool:
        return team.count() >= len(shipped) and all(row == (60,) for row in team.rows("SELECT version FROM streams"))

    await eventually(all_there, 60)
    assert sorted(team.rows("SELECT id FROM requests")) == sorted((record.event.id,) for record in shipped)
    expected = sorted((subject, 60, subject, "active") for subject in versions)
    assert sorted(team.rows("SELECT subject, version, name, status FROM streams")) == expected
    assert team.rows("SELECT * FROM unreadable") == []
    by_key = dict(team.rows("SELECT key_id, count(*) FROM requests GROUP BY key_id"))
    assert by_key == {n: sum(r.event.data.key_id == n for r in shipped) for n in by_key}


async def test_what_was_not_committed_or_makes_no_sense_is_not_counted(team: Team) -> None:
    await ensure_topics(Base(kafka=team.kafka), [REQUEST_EVENTS, KEY_EVENTS])
    left_open = await Producer.open(team.kafka, "keyledger/keys")
    await left_open._client.begin_transaction()
    await left_open._client.send_and_wait(
        KEY_EVENTS.name, change("key-1", 1, "key.created", name="never").value, b"key-1", partition=0
    )
    relay = await Producer.open(team.kafka, "keyledger/keys")
    await relay.transaction(
        [change("key-1", 1, "key.created", name="said"), change("key-1", 2, "key.of_a_later_version")]
    )
    nonsense = (b"{", b"7", b"[]", b'{"subject": "key-2", "streamversion": 1, "type": "key.x", "data": []}')
    too_much = b'{"subject": {}, "streamversion": %d, "type": "key.x", "data": {}}' % 2**70
    await relay.transaction([Message(Partition(KEY_EVENTS.name, 1), b"key-2", it) for it in (*nonsense, too_much)])
    team.start()
    await eventually(lambda: len(team.rows("SELECT 1 FROM unreadable")) == 5, 60)
    await eventually(lambda: team.rows("SELECT 1 FROM streams"), 30)
    assert team.rows("SELECT * FROM streams") == [("key-1", 2, "said", "active")]
    await relay.transaction([change("key-1", 4, "key.deactivated")])
    await eventually(lambda: "key-1 goes on with version 4, 2 is held" in team.log(), 30)
    assert team.rows("SELECT version FROM streams") == [(2,)]
    await relay.abandon()
    await left_open.abandon()
