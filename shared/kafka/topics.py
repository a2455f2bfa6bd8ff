"""The cluster and its topics: which they are, and that those are there that a service produces to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError

from shared.events.topics import Topic
from shared.kafka.errors import DEADLINE, KafkaUnavailable, guarded
from shared.kafka.protocol import SettingsRequest, TopicsRequest
from shared.settings import Base, PartitionsChanged

# An edge whose clock is wrong must neither be refused nor have its records deleted unread: the broker's clock counts.
_TIMESTAMPS = {"message.timestamp.type": "LogAppendTime"}
_log = structlog.get_logger()


class FoundTopic(NamedTuple):
    """A topic that exists. `id` is its own alone: one that was deleted and made anew has another."""

    id: str
    partitions: int


class Cluster(NamedTuple):
    """A cluster, and those of the topics that were asked for that exist in it."""

    id: str
    topics: Mapping[str, FoundTopic]


async def identify(bootstrap: str, topics: Sequence[str]) -> Cluster:
    """Which cluster is there, and which topics: offsets mean something only in the topic whose id they were stored with."""
    async with _admin(bootstrap) as admin:
        return await _identified(admin, topics)


async def cluster_id(bootstrap: str) -> str:
    """The cluster's identity: another one means that offsets of before mean nothing."""
    return (await identify(bootstrap, [])).id


async def still_cluster(bootstrap: str, cluster: str) -> None:
    """Raises `KafkaUnavailable` when it is not the cluster with this id any more that is at the address."""
    if await cluster_id(bootstrap) != cluster:
        raise KafkaUnavailable("another Kafka cluster is there now")


async def partition_count(bootstrap: str, topic: str) -> int:
    """How many partitions the topic has; 0 when it does not exist."""
    found = (await identify(bootstrap, [topic])).topics.get(topic)
    return found.partitions if found else 0


async def ensure_topics(settings: Base, topics: Iterable[Topic]) -> Cluster:
    """Makes the topics that are missing, and has those that are there take the broker's time for records.

    `PartitionsChanged` when one exists with another number of partitions.
    """
    wanted = {topic.name: topic for topic in topics}
    async with _admin(settings.kafka) as admin:
        found = await _identified(admin, list(wanted))
        missing = [topic for name, topic in wanted.items() if name not in found.topics]
        for topic in missing:
            await _create(admin, settings, topic)
        while found.topics.keys() != wanted.keys():  # a broker knows of a topic a moment after it was made
            await asyncio.sleep(0.02)
            found = await _identified(admin, list(wanted))
        if present := wanted.keys() - {topic.name for topic in missing}:
            await _take_broker_s_time(admin, sorted(present))
    for name, topic in found.topics.items():
        if topic.partitions != settings.partitions:
            raise PartitionsChanged(
                f"topic {name} has {topic.partitions} partitions, not {settings.partitions}; it can't change"
            )
    return found


async def _take_broker_s_time(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> None:
    """The broker changes nothing where it is so already. Who may not change it goes on with what an administrator set."""
    response: Any = await admin._send_request(SettingsRequest(dict.fromkeys(topics, _TIMESTAMPS)))
    for code, message, _, name in response.resources:
        if code:
            _log.warning("a topic keeps its producers' times", topic=name, code=code, error=message)


async def _create(admin: AIOKafkaAdminClient, settings: Base, topic: Topic) -> None:
    common = {"min.insync.replicas": str(settings.min_insync_replicas), "unclean.leader.election.enable": "false"}
    configs = common | _TIMESTAMPS | topic.config
    with suppress(TopicAlreadyExistsError):
        response: Any = await admin.create_topics(
            [NewTopic(topic.name, settings.partitions, settings.replication, topic_configs=configs)]
        )
        for _name, code, *message in response.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                raise KafkaUnavailable(f"topic {topic.name} could not be made: {code} {message}")


async def _identified(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> Cluster:
    found = (await admin._send_request(TopicsRequest(topics))).to_object()
    return Cluster(
        found["cluster_id"],
        {
            each["topic"]: FoundTopic(str(each["topic_id"]), len(each["partitions"]))
            for each in found["topics"]
            if each["partitions"]
        },
    )


@asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(DEADLINE * 1000))
    async with guarded("admin", 2 * DEADLINE):
        try:
            await admin.start()
            yield admin
        finally:
            with suppress(Exception):
                await admin.close()
