"""What only Kafka's own tools, its disk and an administrator can do: an empty new cluster, logs without their tails, a log
that is compacted now, answers that come late.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from shared.events.topics import Topic
from shared.kafka import Partition, Record
from tests.support.delay import Delay, delaying
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack, is_alive
from tests.support.topics import read_topic

_AT_ONCE = {
    "min.cleanable.dirty.ratio": "0",
    "max.compaction.lag.ms": "100",
    "segment.ms": "1000",
    "delete.retention.ms": "0",
}


@contextmanager
def without_kafka(stack: LocalStack) -> Iterator[list[str]]:
    """Kills Kafka, and has it come back, at the context's end, with what was made of its files meanwhile; the words of its
    command line."""
    pid = stack.process("kafka")["pid"]
    java = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    supervisor = stack.directory.holder()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGSTOP)  # so that it isn't started again before
    try:
        os.kill(pid, signal.SIGKILL)
        eventually_sync(lambda: not is_alive(pid))
        yield java
    finally:
        os.kill(supervisor, signal.SIGCONT)
    stack.wait_restarted("kafka", pid, 120)


def empty_kafka(stack: LocalStack) -> str:
    """Kafka loses all that it held, and comes back at its address as a cluster of its own: the new id."""
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    with without_kafka(stack) as (*options, _, properties):
        shutil.rmtree(stack.directory.kafka / "data")
        tool = (*options, "kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", properties)
        subprocess.run(tool, check=True, capture_output=True, timeout=120)
    return cluster


def keep_logs(stack: LocalStack, topics: Sequence[Topic], kept: Path) -> None:
    """Copies the topics' logs as they are now; Kafka is killed for it."""
    with without_kafka(stack):
        for log in _logs(stack, topics):
            shutil.copytree(log, kept / log.name)


def lose_tails(stack: LocalStack, topics: Sequence[Topic], kept: Path) -> None:
    """The topics' logs end where they ended when they were kept: all that was acknowledged since is lost."""
    with without_kafka(stack):
        for log in _logs(stack, topics):
            shutil.rmtree(log)
            shutil.copytree(kept / log.name, log)
        for name in ("recovery-point-offset-checkpoint", "replication-offset-checkpoint", "cleaner-offset-checkpoint"):
            (stack.directory.kafka / "data" / name).unlink(missing_ok=True)


async def lengths(kafka: str, partitions: Collection[Partition]) -> dict[Partition, int]:
    """By partition the offset after its last record, committed or not."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    try:
        return await consumer.end_offsets(list(partitions))
    finally:
        await consumer.stop()


def _logs(stack: LocalStack, topics: Sequence[Topic]) -> list[Path]:
    return [path for topic in topics for path in (stack.directory.kafka / "data").glob(f"{topic.name}-[0-9]*")]


@contextmanager
def slow_answers(stack: LocalStack) -> Iterator[Delay]:
    """Clients reach Kafka by a proxy whose answers can be delayed: it is the address that Kafka gives them. Kafka is
    restarted at the beginning and at the end."""
    own = stack.env["KEYLEDGER_KAFKA"]
    properties = stack.directory.kafka / "server.properties"
    before = properties.read_text()
    with delaying(int(own.rpartition(":")[2])) as delay:
        advertised = f"advertised.listeners=PLAINTEXT://127.0.0.1:{delay.port},"
        with without_kafka(stack):
            properties.write_text(before.replace(f"advertised.listeners=PLAINTEXT://{own},", advertised))
        try:
            yield delay
        finally:
            delay.seconds = 0.0
            with without_kafka(stack):
                properties.write_text(before)


def compact(stack: LocalStack, topics: Sequence[Topic], deadline: float = 120.0) -> int:
    """Has the broker compact what the topics hold now; returns how many records went, when it has.

    What comes meanwhile is compacted too, as far as it is not in a log's last segment. Afterwards the topics have their
    own settings again.
    """
    kafka = stack.env["KEYLEDGER_KAFKA"]
    before = {topic.name: asyncio.run(read_topic(kafka, topic.name)) for topic in topics}
    asyncio.run(_configure(kafka, {topic.name: topic.config | _AT_ONCE for topic in topics}))
    try:
        return sum(
            eventually_sync(lambda topic=topic: _gone(kafka, topic.name, before[topic.name]), deadline, 1.0)
            for topic in topics
        )
    finally:
        asyncio.run(_configure(kafka, {topic.name: topic.config for topic in topics}))


def _gone(kafka: str, topic: str, before: Mapping[int, Sequence[Record]]) -> int:
    """How many of the records that were there are gone; AssertionError while one is left that has a newer one.

    A log that nothing was added to since is left out: its last segment is still the one that is never compacted.
    """
    found = asyncio.run(read_topic(kafka, topic))
    gone = 0
    for partition, records in before.items():
        if not records or found[partition][-1].offset <= records[-1].offset:
            continue
        newest = {record.key: record.offset for record in found[partition]}
        old = [record for record in found[partition] if record.offset <= records[-1].offset]
        assert all(newest[record.key] == record.offset for record in old), f"{topic} is not compacted yet"
        gone += len(records) - len(old)
    return gone


async def _configure(kafka: str, configs: Mapping[str, Mapping[str, str]]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, dict(config)) for name, config in configs.items()]
        answers: list[Any] = await admin.alter_configs(resources)
        assert [code for answer in answers for code, *_ in answer.resources] == [0] * len(configs)
    finally:
        await admin.close()
