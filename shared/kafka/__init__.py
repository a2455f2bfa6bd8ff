"""The one place that knows the Kafka client (aiokafka). Everything waits with a deadline and fails as `KafkaUnavailable`.

A client that failed is thrown away and made anew by its caller: after an error neither the producer's sequence numbers
nor the consumer's positions can be trusted (aiokafka issues 1017, 738, 718, 847).
"""

from aiokafka.structs import TopicPartition as Partition

from shared.kafka.errors import Fenced, KafkaUnavailable, OutOfRange
from shared.kafka.producer import Batch, Message, Producer
from shared.kafka.reader import Reader, Record
from shared.kafka.topics import (
    Cluster,
    FoundTopic,
    cluster_id,
    ensure_topics,
    identify,
    partition_count,
    still_cluster,
)

__all__ = [
    "Batch",
    "Cluster",
    "Fenced",
    "FoundTopic",
    "KafkaUnavailable",
    "Message",
    "OutOfRange",
    "Partition",
    "Producer",
    "Reader",
    "Record",
    "cluster_id",
    "ensure_topics",
    "identify",
    "partition_count",
    "still_cluster",
]
