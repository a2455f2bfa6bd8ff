"""The partitioner against the Kafka client's own."""

from __future__ import annotations

from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from shared.partitions import partition_for


@given(st.binary(max_size=50), st.integers(1, 1000))
def test_it_is_kafkas(key: bytes, partitions: int) -> None:
    assert partition_for(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions
