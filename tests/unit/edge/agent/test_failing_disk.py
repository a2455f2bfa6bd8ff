"""A disk that gives an error for one log: the others are shipped, and it is too when the disk gives it again."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from services.edge.agent.shipper import Shipper
from services.edge.requestlog import reader
from shared.settings import Base
from tests.support.eventually import eventually
from tests.unit.edge.logs import PARTITIONS, begin, record, write

pytestmark = pytest.mark.anyio


async def test_an_error_of_the_disk_stops_one_log_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = begin(tmp_path), begin(tmp_path)
    write(bad, *(record(number) for number in range(5)))
    write(good, *(record(number) for number in range(7)))
    real, failed = reader._read, asyncio.Event()

    def failing(path: Path, offset: int, limit: int) -> bytes | None:
        if path.parent == bad.path and offset:
            failed.set()
            raise OSError(errno.EIO, "the disk is failing")
        return real(path, offset, limit)

    shipper = Shipper(Base(kafka="127.0.0.1:1", partitions=PARTITIONS), tmp_path)
    shipper.tell({}, {})
    reading = asyncio.ensure_future(shipper._read())
    await eventually(lambda: shipper.waiting == 12)
    monkeypatch.setattr(reader, "_read", failing)
    write(bad, record(5))
    write(good, record(7))
    await asyncio.wait_for(failed.wait(), 10)
    await eventually(lambda: shipper.waiting == 13)
    assert shipper.unreadable == 1 and not reading.done()
    monkeypatch.undo()
    await eventually(lambda: shipper.waiting == 14)
    assert shipper.unreadable == 0
    reading.cancel()
    for log in (bad, good):
        log.close()


async def test_a_log_that_is_to_be_shipped_again_is_when_the_disk_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path)
    write(log, *(record(number) for number in range(5)))
    shipper = Shipper(Base(kafka="127.0.0.1:1", partitions=PARTITIONS), tmp_path)
    shipper.tell({}, {})
    reading = asyncio.ensure_future(shipper._read())
    await eventually(lambda: shipper.waiting == 5)

    def failing(self: reader.LogReader) -> list[int]:
        raise OSError(errno.EIO, "the disk is failing")

    monkeypatch.setattr(reader.LogReader, "segments", failing)
    shipper.recognise("one")
    shipper.recognise("another")
    await eventually(lambda: shipper.unreadable == 1)
    monkeypatch.undo()
    await eventually(lambda: shipper.waiting == 10)
    reading.cancel()
    log.close()
