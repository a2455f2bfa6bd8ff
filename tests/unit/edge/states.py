"""Records of `key-states` for tests, made with the published classes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from shared.events import CloudEvent, EventData
from shared.events.keys import Hash, Heartbeat, KeyState, Limits, OwnerState

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
