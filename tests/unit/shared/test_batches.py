"""What a fetch brought comes out as the parser made it, in pieces that are bounded by records and by bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from shared.kafka import Partition
from shared.kafka.batches import make_room

PARTITION = Partition("topic", 3)


def fetched(batches: list[list[bytes]], at: int = 0, *, flipped: int | None = None) -> Any:
    """Batches as a broker gives them, from an offset on; of the last, a bit may be another than it was."""
    built, first = list[bytearray](), 0
    for values in batches:
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 30)
        for number, value in enumerate(values):
            assert builder.append(number, 1000 + number, b"key", value, [("name", b"x")])
        built.append(bytearray(builder.build()))
        built[-1][:8] = first.to_bytes(8, "big")
        first += len(values)
    if flipped is not None:
        built[-1][flipped] ^= 1
    data = b"".join(built)
    state = SimpleNamespace(position=at, paused=False)
    state.consumed_to = lambda offset: setattr(state, "position", offset)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    records = fetcher.PartitionRecords(PARTITION, fetcher.MemoryRecords(data), [], at, None, None, True, 1)
    return fetcher.FetchResult(PARTITION, assignment=assignment, partition_records=records, backoff=0), state


@pytest.mark.parametrize("limit", [1, 249, 250, 251, 700, None])
def test_all_records_come_once_and_in_order(limit: int | None) -> None:
    batches = [[b"%d" % number for number in range(size)] for size in (300, 250, 1, 149)]
    result, state = fetched(batches, at=5)
    found: list[Any] = []
    while result.has_more():
        make_room()
        piece = result.getall(limit)
        assert len(piece) <= (limit or 700)
        found += piece
        assert state.position == (found[-1].offset + 1)
    assert [record.offset for record in found] == list(range(5, 700))
    assert [record.value for record in found] == [value for batch in batches for value in batch][5:]
    assert (found[0].key, list(found[0].headers), found[0].timestamp) == (b"key", [("name", b"x")], 1005)


def test_fetch_ends_after_some_megabytes_of_all_partitions_together() -> None:
    results = [fetched([[b"x" * 10_000] * 2500])[0] for _ in range(6)]
    sizes = []
    while results := [result for result in results if result.has_more()]:
        make_room()
        sizes.append(sum(len(result.getall(10_000)) for result in results))
    assert sum(sizes) == 6 * 2500
    assert max(sizes) * 10_000 < 12_000_000


@pytest.mark.parametrize("at", [17, 20, 21, 61, 100, -1])
def test_damaged_batch_is_found_out(at: int) -> None:
    whole, _ = fetched([[b"a"], [b"b" * 50]])
    make_room()
    assert [record.value for record in whole.getall()] == [b"a", b"b" * 50]
    damaged, _ = fetched([[b"a"], [b"b" * 50]], flipped=at)
    with pytest.raises(CorruptRecordException):
        damaged.getall()
