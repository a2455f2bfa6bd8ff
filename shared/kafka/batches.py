"""Records as aiokafka's parser makes them, and a header's name may be any bytes.

aiokafka 0.14 copies each record into a dataclass, for more than the parsing itself takes; here that is left out. And it
decodes names of headers as UTF-8, though Kafka takes any: its consumer raises at the same record for ever. Here they come
with `\\xff` for what can't be decoded. All of it stands in for classes of the fetcher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from itertools import islice
from typing import Any

import google_crc32c
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint
from typing_extensions import override

_OVERHEAD = 12  # base offset and length, which does not count these
_MAGIC, _CRC, _VERSION = 16, 17, 2  # where they lie, and of which format that holds
_BYTES = 6 << 20
_STEP = 250
_room: ContextVar[list[int]] = ContextVar("room")


def read_so() -> None:
    """From now on aiokafka's consumers read so."""
    fetcher.MemoryRecords = _Batches  # type: ignore[bad-assignment]
    fetcher.PartitionRecords = _Records  # type: ignore[bad-assignment]
    fetcher.FetchResult = _Result  # type: ignore[bad-assignment]


def make_room() -> None:
    """What this task is given next is some megabytes at most, of all its partitions together, and a step more.

    A number of records says little of their size, and what a batch unpacks to is no more bounded than how well it packs.
    """
    _room.set([_BYTES])


class _Records(fetcher.PartitionRecords):
    @override
    def _consumer_record(self, _: object, record: Any) -> Any:  # type: ignore[bad-override-param-name]
        return record


class _Result(fetcher.FetchResult):
    """`getall` ends where there is no more room (`make_room`)."""

    _partition_records: Any

    @override
    def getall(self, max_records: int | None = None) -> list[Any]:
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        found: list[Any] = []
        left = 1 << 62 if max_records is None else max_records
        room = _room.get()
        while left > 0 and room[0] > 0:
            step = list(islice(self._partition_records, min(left, _STEP)))
            found += step
            room[0] -= sum(len(record.value or b"") for record in step)
            left -= len(step)
            if len(step) < _STEP and left > 0:
                self._update_position()
                self._partition_records = None
                return found
        self._update_position()
        return found


class _Batches:
    """What a fetch brought of a partition."""

    def __init__(self, data: bytes) -> None:
        self._batches = MemoryRecords(data)
        self._rest = memoryview(data)
        self.has_next = self._batches.has_next
        self.size_in_bytes = self._batches.size_in_bytes

    def next_batch(self) -> _Batch:
        size = _OVERHEAD + int.from_bytes(self._rest[8:_OVERHEAD])
        batch, self._rest = self._rest[:size], self._rest[size:]
        return _Batch(self._batches.next_batch(), batch)


class _Batch:
    """aiokafka's batch; only what that can't decode is decoded here."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        """By the processor's own instruction: by aiokafka's tables it took an eighth of all that is done with a record."""
        if self._data[_MAGIC] != _VERSION:
            return bool(self._batch.validate_crc())
        return google_crc32c.value(bytes(self._data[_CRC + 4 :])) == int.from_bytes(self._data[_CRC : _CRC + 4])

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(list(_AnyNames(self._data)))


class _AnyNames(_DefaultRecordBatchPy):  # type: ignore[invalid-inheritance]
    @override
    def _read_msg(self, decode_varint: Any = decode_varint) -> _DefaultRecordPy:
        buffer = self._buffer
        _, at = decode_varint(buffer, self._pos)  # the record's size
        _, at = decode_varint(buffer, at)  # attributes, of which there are none
        delta, at = decode_varint(buffer, at)
        timestamp = self.max_timestamp if self.timestamp_type == self.LOG_APPEND_TIME else self.first_timestamp + delta
        offset, at = decode_varint(buffer, at)
        key, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        count, at = decode_varint(buffer, at)
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            name, at = _bytes(buffer, at)
            of_it, at = _bytes(buffer, at)
            headers.append(((name or b"").decode(errors="backslashreplace"), of_it))
        self._pos = at
        return _DefaultRecordPy(self.base_offset + offset, timestamp, self.timestamp_type, key, value, headers)


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(buffer, at)
    return (None, at) if size < 0 else (bytes(buffer[at : at + size]), at + size)
