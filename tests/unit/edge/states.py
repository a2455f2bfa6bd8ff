"""Records of `key-states` for tests, made with the published classes; a replica of them, and what is found in it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from services.edge.domain import Outcome, decide
from services.edge.replica.reader import ReplicaReader
from services.edge.replica.writer import ReplicaWriter, StateBatch
from shared.events import CloudEvent, EventData
from shared.events.keys import Hash, Heartbeat, KeyState, Limits, OwnerState

NOW = 10**15
MOMENT = datetime(2024, 3, 20, 12, 0, 0, 123456, tzinfo=UTC)

StateRecord = tuple[bytes, bytes | None]


def hash_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def event(data: EventData, subject: str, *, version: int | None = 1, epoch: int = 1) -> bytes:
    return CloudEvent[Any](
        id=f"{subject}@{epoch}.{version}",
        source="keyledger/keys",
        type=data.TYPE,
        time=MOMENT,
        subject=subject,
        epoch=epoch,
        streamversion=version,
        data=data,
    ).encode()


def key(
    number: int = 7, *secrets: str, version: int = 1, epoch: int = 1, owner: int = 3, status: str = "active"
) -> StateRecord:
    """The state of a key, known by the hashes of `secrets` (by default that of `secret-<number>`)."""
    hashes = tuple(Hash(hash=hash_of(secret).hex()) for secret in secrets or (f"secret-{number}",))
    data = KeyState(
        id=number,
        owner_id=owner,
        status=status,  # type: ignore[arg-type]
        permissions=("read",),
        limits=Limits(),
        expires_at=None,
        addresses=(),
        hashes=hashes,
    )
    return b"key-%d" % number, event(data, f"key-{number}", version=version, epoch=epoch)


def owner(number: int = 3, *, version: int = 1, epoch: int = 1, status: str = "active") -> StateRecord:
    data = OwnerState(id=number, status=status)  # type: ignore[arg-type]
    return b"owner-%d" % number, event(data, f"owner-{number}", version=version, epoch=epoch)


def beat(partition: int, streams: int, *, position: int = 1, epoch: int = 1) -> StateRecord:
    data = Heartbeat(partition=partition, position=position, streams=streams)
    return b"beat-%d" % partition, event(data, f"beat-{partition}", version=None, epoch=epoch)


def apply(
    writer: ReplicaWriter, *records: StateRecord, partition: int = 0, now: int = NOW, at_end: bool = True
) -> None:
    offset = (writer.offsets.get(partition) or 0) + len(records)
    writer.apply([StateBatch(partition, records, offset, at_end)], now)


def found(reader: ReplicaReader, secret: str) -> tuple[int, int, str] | None:
    """Id, version and status of the key that a secret finds."""
    pair = reader.lookup(hash_of(secret))
    return (pair[0].id, pair[0].version, pair[0].status) if pair else None


def outcome(reader: ReplicaReader, secret: str) -> Outcome:
    key_state, owner_state = reader.lookup(hash_of(secret)) or (None, None)
    return decide(key_state, owner_state, hash_of(secret), wall_ns=0, address=None, permission=None)
