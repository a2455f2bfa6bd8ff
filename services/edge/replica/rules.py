"""Applying records of `key-states` inside one transaction of the replica: the rules by which its databases change.

Apart from the writer because these are the rules and that is the care of files and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import lmdb
import msgspec

from services.edge.domain import KeyState, OwnerState
from services.edge.replica.files import Environment, Meta
from services.edge.replica.readiness import Beat
from services.edge.replica.states import UNREADABLE, Unreadable, parse

_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(KeyState).decode
_decode_owner = msgspec.msgpack.Decoder(OwnerState).decode


class StateBatch(NamedTuple):
    """Records of one partition of `key-states`, as (key, value), and the offset to read on from after them.

    `at_end`: they reach to the partition's end as it was when they were fetched; only then is a heartbeat among them
    news, and not history.
    """

    partition: int
    records: Sequence[tuple[bytes | None, bytes | None]]
    next_offset: int
    at_end: bool = True


class Update:
    """What a transaction makes of the replica; nothing counts before it is committed. `malformed` counts senseless records."""

    def __init__(self, environment: Environment, transaction: lmdb.Transaction[bytes], meta: Meta, now_ns: int) -> None:
        self._environment = environment
        self._transaction = transaction
        self._meta = meta
        self._now_ns = now_ns
        self._held = list(meta.held)
        self._offsets = list(meta.offsets)
        self._beats = list(meta.beats)
        self._beat_ns = list(meta.beat_ns)
        self.malformed = 0

    def meta(self) -> Meta:
        """The meta record after what was taken."""
        return msgspec.structs.replace(
            self._meta,
            held=tuple(self._held),
            offsets=tuple(self._offsets),
            beats=tuple(self._beats),
            beat_ns=tuple(self._beat_ns),
        )

    def take(self, batch: StateBatch) -> None:
        """Applies a batch in order."""
        for key, value in batch.records:
            record = parse(key, value)
            if record is None or isinstance(record.value, Unreadable):
                self.malformed += 1
            if record is None:
                continue
            if record.kind == "beat":
                self._take_beat(batch, record.value)
            elif record.kind == "key":
                self._take_key(batch.partition, record.id, record.value)
            else:
                self._take_owner(batch.partition, record.id, record.value)
        self._offsets[batch.partition] = batch.next_offset

    def _take_beat(self, batch: StateBatch, beat: object) -> None:
        if not isinstance(beat, Beat):
            return
        last = self._beats[batch.partition]
        if last is not None and (beat.epoch, beat.position) < (last.epoch, last.position):
            return
        self._beats[batch.partition] = beat
        if batch.at_end:
            self._beat_ns[batch.partition] = self._now_ns

    def _take_key(self, partition: int, number: int, value: object) -> None:
        name, database = number.to_bytes(8, "big"), self._environment.keys
        raw = self._transaction.get(name, None, database)
        held = _decode(_decode_key, raw)
        if isinstance(value, Unreadable):
            value = _refusing_key(number, held, value)
        if value is not None and not _newer(value, held):
            return
        state = value if isinstance(value, KeyState) else None
        before = _hashes(held)
        after = _hashes(state)
        self._replace(partition, name, raw, state, database)
        for gone in before - after:
            # Unless another key has claimed it since.
            if self._transaction.get(gone, None, self._environment.hashes) == name:
                self._transaction.delete(gone, db=self._environment.hashes)
        for known in after:
            self._transaction.put(known, name, db=self._environment.hashes)

    def _take_owner(self, partition: int, number: int, value: object) -> None:
        name, database = number.to_bytes(8, "big"), self._environment.owners
        raw = self._transaction.get(name, None, database)
        held = _decode(_decode_owner, raw)
        if isinstance(value, Unreadable):
            value = _refusing_owner(number, held, value)
        if value is None or _newer(value, held):
            self._replace(partition, name, raw, value, database)

    def _replace(self, partition: int, name: bytes, raw: bytes | None, state: object, database: lmdb._Database) -> None:
        if state is not None:
            self._transaction.put(name, _encode(state), db=database)
            self._held[partition] += raw is None
        elif raw is not None:
            self._transaction.delete(name, db=database)
            self._held[partition] -= 1


def _newer(value: object, held: KeyState | OwnerState | None) -> bool:
    if not isinstance(value, KeyState | OwnerState):
        return False
    if held is None:
        return True
    place, last = (value.epoch, value.version), (held.epoch, held.version)
    # What could not be read may be sent again as it should have been.
    return place > last or (place == last and held.status == UNREADABLE)


def _hashes(state: KeyState | None) -> set[bytes]:
    return {known for known, _ in state.hashes} if state else set()


def _refusing_key(number: int, held: KeyState | None, unreadable: Unreadable) -> KeyState:
    # It keeps the hashes: who presents one meets a refusal, not an edge that has never heard of the key.
    epoch, version = unreadable.place or _after(held)
    base = held or KeyState(number, 0, epoch, version, UNREADABLE)
    return msgspec.structs.replace(base, epoch=epoch, version=version, status=UNREADABLE)


def _refusing_owner(number: int, held: OwnerState | None, unreadable: Unreadable) -> OwnerState:
    epoch, version = unreadable.place or _after(held)
    return OwnerState(number, epoch, version, UNREADABLE)


def _after(held: KeyState | OwnerState | None) -> tuple[int, int]:
    # The place where a record without one must have been, the earliest: the state after it will be taken.
    if held is None:
        return 0, 0
    return held.epoch, held.version + (held.status != UNREADABLE)


State = TypeVar("State", KeyState, OwnerState)


def _decode(decode: Callable[[bytes], State], raw: bytes | None) -> State | None:
    try:
        return None if raw is None else decode(raw)
    except msgspec.MsgspecError:
        return None
