"""Receipts: which edges count, and what each has confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from services.keys.propagation import Edge, Propagation, Receipt, receipt
from shared.events import CloudEvent
from shared.events.requests import EdgeStatus
from shared.events.topics import EDGE_STATUS
from shared.eventstore import Place
from shared.kafka import Partition
from tests.support.eventually import eventually
from tests.support.fakebroker import Entry, FakeBroker
from tests.support.fakeclients import installed


def _edge(position: int, *, epoch: int = 1, heard: float = 100.0, status: str = "live") -> Edge:
    return Edge(status, epoch, {2: position}, heard)


def test_live_edges_confirm_and_silent_ones_are_named() -> None:
    edges = {
        "a": _edge(7),
        "b": _edge(6),
        "quiet": _edge(7, heard=96.0),
        "gone": _edge(9, status="stopped"),
        "old": _edge(9, status="retired"),
    }
    found = receipt(edges, 2, Place(1, 7), 100.0, 99.963)
    assert found == Receipt(2, 1, ("gone", "quiet"), 37)
    assert found.header() == 'edges=2; confirmed=1; ms=37; silent="gone quiet"'


def test_what_was_applied_of_an_earlier_epoch_confirms_nothing() -> None:
    edges = {"before": _edge(900, epoch=1), "after": _edge(3, epoch=2)}
    assert receipt(edges, 2, Place(2, 3), 100.0, 100.0).confirmed == 1
    assert receipt(edges, 5, Place(2, 3), 100.0, 100.0).confirmed == 0


def test_without_kafka_nothing_is_claimed() -> None:
    assert Receipt(None).header() == "edges=unknown"


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    """With reports whose times are those of the edges' own clocks."""
    with installed(FakeBroker()) as broker:
        broker.create(EDGE_STATUS.name, 1, {})
        yield broker


def _says(broker: FakeBroker, edge: str, ahead_ms: int, position: int = 7, value: bytes | None = None) -> None:
    data = EdgeStatus(edge=edge, status="live", ready=True, applied={0: position}, freshness=0)
    now = datetime.now(UTC)
    event = CloudEvent[EdgeStatus](id="x", source="edge", type=EdgeStatus.TYPE, time=now, epoch=1, data=data)
    timestamp = int(now.timestamp() * 1000) + ahead_ms
    broker.write(Partition(EDGE_STATUS.name, 0), [Entry(b"key", value or event.encode(), (), timestamp)])


@pytest.mark.anyio
@pytest.mark.parametrize("ahead_ms", [-60_000, -3_500, 0, 3_000_000])
async def test_an_edge_is_heard_when_it_is_read_whatever_its_clock_says(broker: FakeBroker, ahead_ms: int) -> None:
    followed, stop = Propagation("fake:9092"), asyncio.Event()
    _says(broker, "well", 0, position=0)
    _says(broker, "wrong", ahead_ms, position=0)
    running = asyncio.ensure_future(followed.run(stop))
    try:
        await eventually(lambda: followed.checks()["edges"]().detail == "2 known")
        _says(broker, "junk", 0, value=b'{"data": {"edge": "x", "status": "live", "applied": {"zero": 0}}, "epoch": 1}')
        _says(broker, "well", 0)
        _says(broker, "wrong", ahead_ms)
        found = await followed.wait(0, Place(1, 7), 10.0)
        assert (found.edges, found.confirmed, found.silent) == (2, 2, ())
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)


@pytest.mark.anyio
async def test_what_was_said_long_before_the_last_report_is_silence(broker: FakeBroker) -> None:
    followed, stop = Propagation("fake:9092"), asyncio.Event()
    _says(broker, "dead", -60_000)
    _says(broker, "well", 0)
    running = asyncio.ensure_future(followed.run(stop))
    try:
        await eventually(lambda: followed.checks()["edges"]().detail == "2 known")
        assert (await followed.wait(0, Place(1, 7), 5.0)).header().endswith('edges=1; confirmed=1; ms=0; silent="dead"')
        # A connection later it is no younger.
        broker.fail("fetch", done=False)
        before = broker.requests["metadata"]
        await eventually(lambda: broker.requests["metadata"] > before)
        await eventually(lambda: followed.checks()["edges"]().detail == "2 known")
        assert "dead" in (await followed.wait(0, Place(1, 7), 5.0)).silent
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)
