"""What a record of `key-states` says, in the form in which the replica holds it. Pure; apart from the writer for that.

These structs are the fast twins of `shared.events.keys.KeyState`, `OwnerState` and `Heartbeat` in their envelopes. A
record is judged by its key: when that names a stream and the value says nothing that makes sense, the stream is to
refuse, not to go on as it was.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple

import msgspec

from services.edge.domain import KeyState, Limits, OwnerState
from services.edge.replica.readiness import Beat

# A status that no rule knows: whoever has it is refused.
UNREADABLE = "unreadable"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KEY = re.compile(rb"(key|owner|beat)-(0|[1-9]\d{0,17})")

_Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Limit = Annotated[int, msgspec.Meta(ge=0)] | None
_Time = Annotated[datetime, msgspec.Meta(tz=True)] | None


class _Limits(msgspec.Struct):
    minute: _Limit = 100
    hour: _Limit = 1000
    day: _Limit = 10000


class _Hash(msgspec.Struct):
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    valid_until: _Time = None


class _Key(msgspec.Struct):
    id: _Id
    owner_id: _Id
    status: str
    permissions: frozenset[str]
    limits: _Limits
    expires_at: _Time
    addresses: tuple[str, ...]
    hashes: tuple[_Hash, ...]


class _Owner(msgspec.Struct):
    id: _Id
    status: str


class _Beat(msgspec.Struct):
    partition: _Id
    position: _Id
    streams: _Id
    generation: _Id = 0


class _Place(msgspec.Struct):
    epoch: _Id
    streamversion: _Id


class _NamedPlace(_Place):
    subject: str


class _KeyEvent(_Place, tag_field="type", tag="key.state"):
    data: _Key


class _OwnerEvent(_Place, tag_field="type", tag="owner.state"):
    data: _Owner


class _BeatEvent(msgspec.Struct, tag_field="type", tag="states.heartbeat"):
    epoch: _Id
    data: _Beat


_decode_key = msgspec.json.Decoder(_KeyEvent).decode
_decode_owner = msgspec.json.Decoder(_OwnerEvent).decode
_decode_beat = msgspec.json.Decoder(_BeatEvent).decode
_decode_place = msgspec.json.Decoder(_NamedPlace).decode
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Unreadable(NamedTuple):
    """A record that names a stream but makes no sense; `place` is its (epoch, version), if at least that is certain."""

    place: tuple[int, int] | None


Value = KeyState | OwnerState | Beat | Unreadable | None


class StateRecord(NamedTuple):
    """A record: of which `kind` (`key`, `owner`, `beat`), of which id (a heartbeat's is its partition), and what it says.

    `value` None is a tombstone.
    """

    kind: str
    id: int
    value: Value


def parse(key: bytes | None, value: bytes | None) -> StateRecord | None:
    """What a record says; None when its key names nothing."""
    match = _KEY.fullmatch(key or b"")
    if match is None:
        return None
    kind, number = match[1].decode(), int(match[2])
    if value is None:
        return StateRecord(kind, number, None)
    try:
        state, named = _PARSERS[kind](value)
    except _UNDECODABLE:
        return StateRecord(kind, number, Unreadable(_place(value, match[0])))
    return StateRecord(kind, number, state if named == number else Unreadable(None))


def _key(value: bytes) -> tuple[KeyState, int]:
    event = _decode_key(value)
    data = event.data
    state = KeyState(
        id=data.id,
        owner_id=data.owner_id,
        epoch=event.epoch,
        version=event.streamversion,
        status=data.status,
        permissions=data.permissions,
        limits=Limits(data.limits.minute, data.limits.hour, data.limits.day),
        expires_at_ns=_nanoseconds(data.expires_at),
        addresses=data.addresses,
        hashes=tuple((bytes.fromhex(known.hash), _nanoseconds(known.valid_until)) for known in data.hashes),
    )
    return state, data.id


def _owner(value: bytes) -> tuple[OwnerState, int]:
    event = _decode_owner(value)
    return OwnerState(event.data.id, event.epoch, event.streamversion, event.data.status), event.data.id


def _beat(value: bytes) -> tuple[Beat, int]:
    event = _decode_beat(value)
    data = event.data
    return Beat(event.epoch, data.position, data.streams, data.generation), data.partition


_PARSERS = {"key": _key, "owner": _owner, "beat": _beat}


def _place(value: bytes, key: bytes) -> tuple[int, int] | None:
    # Another stream's place would say nothing of this one's.
    try:
        place = _decode_place(value)
    except _UNDECODABLE:
        return None
    return (place.epoch, place.streamversion) if place.subject == key.decode() else None


def _nanoseconds(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // _MICROSECOND * 1000
