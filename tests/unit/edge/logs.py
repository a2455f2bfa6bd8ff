"""Request logs for tests: records by number, a log of them, and what a reader should find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.edge.requestlog.format import partition_of
from services.edge.requestlog.reader import Entry, LogReader, Position, logs
from services.edge.requestlog.writer import Record, RequestLog

PARTITIONS = 3
NOW = 10**15
WALL = 17 * 10**17


def record(number: int, *, key: int | None = None, endpoint: str = "/api/v1/tickets", **changes: object) -> Record:
    made = Record(
        admitted_ns=NOW + number,
        time_ns=WALL + number,
        key_id=1 + number % 7 if key is None else key,
        key_version=1,
        owner_id=1,
        endpoint=endpoint,
        route="platform",
        method="GET",
        status_code=200,
        response_time=0.015,
        decision="allowed",
        via="proxy",
        request_id=f"{number:032x}",
        correlation_id=None,
        client_address="192.0.2.1",
    )
    return msgspec.structs.replace(made, **changes)


def begin(path: Path, **settings: object) -> RequestLog:
    return RequestLog.open(path, edge_id="edge-1", partitions=PARTITIONS, **settings)  # type: ignore[arg-type]


def write(log: RequestLog, *records: Record) -> None:
    for one in records:
        log.append(one)
    log.flush()


def only(path: Path) -> LogReader:
    (reader,) = logs(path)
    return reader


def everything(reader: LogReader, position: Position | None = None, limit: int = 4096) -> tuple[list[Entry], Position]:
    position = position or reader.start()
    entries: list[Entry] = []
    while True:
        batch = reader.read(position, limit)
        entries += batch.entries
        if batch.position == position:
            return entries, position
        position = batch.position


def previous_of(numbered: list[tuple[int, Record]]) -> list[Entry]:
    """The entries that a log of these records has, by the definition of `previous`."""
    lasts = [-1] * PARTITIONS
    entries = []
    for ordinal, one in numbered:
        partition = partition_of(one.key_id, PARTITIONS)
        entries.append(Entry(ordinal, partition, lasts[partition], one))
        lasts[partition] = ordinal
    return entries


def entries_of(records: list[Record]) -> list[Entry]:
    return previous_of(list(enumerate(records)))


def positions(reader: LogReader) -> Iterator[Position]:
    position = reader.start()
    while True:
        yield position
        moved = reader.read(position, 100).position
        if moved == position:
            return
        position = moved


def rolled(path: Path, count: int = 100) -> tuple[LogReader, list[Record]]:
    records = [record(number) for number in range(count)]
    log = begin(path, segment_bytes=1000)
    for one in records:
        write(log, one)
    log.close()
    return only(path), records
