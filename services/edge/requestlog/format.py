"""The format of a request log, which its writer and its readers share: what is in it, and the bytes.

A segment is a row of frames, the first its header. A frame begins with 25 bytes, little endian: magic (4), kind (1),
content's length (4), ordinal (8), CRC-32 of the content (4), CRC-32 of the fields before (4); then the content, msgpack.
The fields' own CRC makes the length trustworthy, so damaged content costs one frame; after damaged fields the magic leads
to the next. No text that a client sends can pretend to be a frame: two bytes of the magic occur nowhere in UTF-8, the
only text in the content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import msgspec

from shared.partitions import partition_for

FORMAT = 1
MAGIC = b"\xffKL\xfe"
HEADER, RECORD, NOTE, SNAPSHOT, DAMAGE = range(5)

_FIELDS = struct.Struct("<4sBIQI")
_FRAME = struct.Struct("<4sBIQII")
_CRC = struct.Struct("<I")
OVERHEAD = _FRAME.size
_pack_fields, _pack_crc = _FIELDS.pack, _CRC.pack
_REMEMBERED = 100_000

encode = msgspec.msgpack.Encoder().encode


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One metered answer. `admitted_ns` is on the boot clock, `time_ns` the same moment on the wall clock.

    `response_time` is in seconds until the response's head. `noted`: a note of this admission went before. Text must
    be encodable as UTF-8.
    """

    admitted_ns: int
    time_ns: int
    key_id: int
    key_version: int
    owner_id: int
    endpoint: str
    route: str
    method: str
    status_code: int
    response_time: float
    decision: str
    via: str
    request_id: str
    correlation_id: str | None
    client_address: str | None
    noted: bool = False


class Note(NamedTuple):
    """An admission whose request is still open: for the limiter only, without an ordinal, never shipped."""

    key_id: int
    admitted_ns: int


class Header(msgspec.Struct, frozen=True):
    """What each segment says of itself. `boot_ns` and `wall_ns` are one moment on both clocks, of boot `boot_id`.

    `lasts` has for each partition the ordinal of the log's last record before this segment, -1 for none: so `previous`
    stays what it was when earlier segments are gone.
    """

    format: int
    log_id: str
    edge_id: str
    boot_id: str
    boot_ns: int
    wall_ns: int
    partitions: int
    first: int
    lasts: tuple[int, ...]


class Frame(NamedTuple):
    """One frame found in a log. `content` None: it is damaged. Kind DAMAGE: bytes that are no frame, skipped up to `end`."""

    kind: int
    ordinal: int
    content: bytes | None
    end: int


def pack(kind: int, ordinal: int, content: bytes) -> bytes:
    """The frame's bytes."""
    fields = _pack_fields(MAGIC, kind, len(content), ordinal, crc32(content))
    return fields + _pack_crc(crc32(fields)) + content


def frames(data: bytes, offset: int = 0) -> Iterator[Frame]:
    """The frames of `data` from `offset` up to the first that is incomplete.

    Damage is told only when a frame follows it: at the end of the data it can't be known from what is still being
    written.
    """
    unpack, size = _FRAME.unpack_from, len(data)
    while offset + OVERHEAD <= size:
        magic, kind, length, ordinal, content_crc, header_crc = unpack(data, offset)
        if magic != MAGIC or crc32(data[offset : offset + OVERHEAD - 4]) != header_crc:
            found = _next(data, offset + 1)
            if found is None:
                return
            yield Frame(DAMAGE, -1, None, found)
            offset = found
            continue
        start = offset + OVERHEAD
        offset = start + length
        if offset > size:
            return
        content = data[start:offset]
        yield Frame(kind, ordinal, content if crc32(content) == content_crc else None, offset)


def is_damage(rest: bytes) -> bool:
    """Whether the end of a log is not merely an incomplete frame: it is long enough for a header and has none."""
    return len(rest) >= OVERHEAD and not _valid(rest, 0)


def _next(data: bytes, offset: int) -> int | None:
    while (offset := data.find(MAGIC, offset)) >= 0:
        if offset + OVERHEAD <= len(data) and _valid(data, offset):
            return offset
        offset += 1
    return None


def _valid(data: bytes, offset: int) -> bool:
    end = offset + OVERHEAD - 4
    return data.startswith(MAGIC, offset) and _CRC.unpack_from(data, end)[0] == crc32(data[offset:end])


def partition_of(key_id: int, partitions: int) -> int:
    """The partition of a key's records: Kafka's own partitioner over the record's key."""
    return partition_for(b"key-%d" % key_id, partitions)


class Partitions(dict[int, int]):
    """The partitions of keys by id, worked out when asked for and then remembered. `count`: how many there are."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __missing__(self, key_id: int) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        partition = self[key_id] = partition_of(key_id, self.count)
        return partition


def segment_name(first: int) -> str:
    """The file name of the segment that begins with ordinal `first`."""
    return f"{first:020d}.log"
