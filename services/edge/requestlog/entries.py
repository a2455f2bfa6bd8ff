"""What the bytes of a request log say, as a function of them and of the place where they begin. Pure; apart from the reader,
which knows of files, so that the rules of damage and of `previous` stand alone.

The rule of damage: what can't be read does not exist. A record's `previous` names the last record of its partition that
could be read, across segments too, whatever the next header says was written: nobody who waits for a record that is lost
would ever get it. So damage opens no gap, every intact record is shipped, and the log can be closed; the damage itself is
told by `Position.damaged`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from services.edge.requestlog.format import DAMAGE, HEADER, NOTE, RECORD, Header, Note, Partitions, Record, frames

_decode_record = msgspec.msgpack.Decoder(Record).decode
_decode_note = msgspec.msgpack.Decoder(Note).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode


class Position(NamedTuple):
    """A place between two frames of a log: byte `offset` of the segment that begins with ordinal `segment`.

    `ordinal` is the next record's, -1 when damage made that unknown; `lasts` has each partition's last ordinal before;
    `damaged` counts the damaged places passed. Positions of one log are ordered.
    """

    segment: int
    offset: int
    ordinal: int
    lasts: tuple[int, ...]
    damaged: int = 0

    @property
    def end(self) -> int:
        """An ordinal beyond all before this position: at the end of a log that of its `closed` record."""
        return self.ordinal if self.ordinal >= 0 else max(self.lasts) + 1


class Entry(NamedTuple):
    """A record with its place: `previous` is the ordinal of the log's record before it in the same partition, or -1."""

    ordinal: int
    partition: int
    previous: int
    record: Record


class Batch(NamedTuple):
    """What was read: entries in order, and where to read on. No entries and the same position: there is no more yet."""

    entries: list[Entry]
    position: Position


def parse(
    data: bytes, position: Position, partitions: Partitions, *, growing: bool
) -> tuple[list[Entry | Note], Position]:
    """The records and notes of the bytes at `position`, up to the first incomplete frame, and the position there.

    `growing`: the bytes reach to the end of a log that is being written, so the last of them may not be all there.
    """
    items: list[Entry | Note] = []
    segment, offset, expected, before, damaged = position
    lasts, passed = list(before), 0
    for kind, ordinal, content, end in frames(data):
        if content is None and growing and end == len(data):
            # Damage, or a frame seen while it is being written: what follows will tell.
            break
        passed = end
        if content is None:
            damaged += 1
            expected = {DAMAGE: -1, RECORD: ordinal + 1}.get(kind, expected)
            continue
        try:
            if kind == RECORD:
                if ordinal < (expected if expected >= 0 else max(lasts) + 1):
                    damaged += 1
                    continue
                damaged += expected not in (ordinal, -1)
                expected = ordinal + 1
                record = _decode_record(content)
                partition = partitions[record.key_id]
                items.append(Entry(ordinal, partition, lasts[partition], record))
                lasts[partition] = ordinal
            elif kind == NOTE:
                items.append(_decode_note(content))
            elif kind == HEADER:
                _decode_header(content)
                expected = ordinal
        except msgspec.DecodeError:
            damaged += 1
    return items, Position(segment, offset + passed, expected, tuple(lasts), damaged)
