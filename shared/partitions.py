"""Which partition a Kafka key goes to: as Kafka's own default partitioner says, so that other programs can compute it.

Apart from `shared.kafka`, because the edge's serving processes need this and no Kafka client.
"""

from __future__ import annotations

from functools import lru_cache

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


@lru_cache(maxsize=100_000)
def partition_for(key: bytes, partitions: int) -> int:
    """The partition of `key` among `partitions`: MurmurHash2 without its sign, modulo (Kafka's `BuiltInPartitioner`)."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bits, as Kafka's `Utils.murmur2` seeds it."""
    hashed = _SEED ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        hashed = hashed * _M & _MASK ^ k
    if rest := data[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * _M & _MASK
    hashed = (hashed ^ hashed >> 13) * _M & _MASK
    return hashed ^ hashed >> 15
