"""The topics that the edge uses: it makes those that it writes, and holds all to the number of partitions in its settings."""

from __future__ import annotations

from shared.events.topics import Topic
from shared.kafka import ensure_topics, partition_count
from shared.settings import Base, PartitionsChanged


async def ensure(settings: Base, topic: Topic) -> None:
    """Makes the topic if it is missing. Raises `KafkaUnavailable`, `PartitionsChanged`."""
    await ensure_topics(settings, [topic])


async def exists(settings: Base, topic: Topic) -> bool:
    """Whether the topic, which another service makes, is there yet. Raises as `ensure` does."""
    count = await partition_count(settings.kafka, topic.name)
    if count not in (0, settings.partitions):
        raise PartitionsChanged(f"topic {topic.name} has {count} partitions, not {settings.partitions}")
    return count > 0
