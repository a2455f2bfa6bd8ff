"""Events of the keys service, on `key-events`, and the states that it derives from them, on `key-states`.

A secret is in none of them. A key's hash is in an event's private part only, which the relay copies to `key-states`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from shared.events import EventData

KeyStatus = Literal["active", "inactive", "revoked", "deleted"]
OwnerStatus = Literal["active", "suspended"]
Permission = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9:._-]{0,63}$")]
"""A permission's name, where one is given to a key and where a route asks for one. An identity token carries all of a
key's."""


class Limits(BaseModel):
    """Requests admitted per key in any sliding minute, hour and day; null is without limit (API documentation, Rate Limits)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    minute: int | None = 100
    hour: int | None = 1000
    day: int | None = 10000


UNLIMITED = Limits(minute=None, hour=None, day=None)


class Hash(BaseModel):
    """One SHA-256 (hex) by which a key is known, until `valid_until` (null: as long as the key)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hash: str
    valid_until: datetime | None = None


class OwnerCreated(EventData):
    """An owner exists from now on; it may hold at most `max_keys` keys that are not deleted."""

    TYPE: ClassVar[str] = "owner.created"
    id: int
    name: str
    created_at: datetime
    max_keys: int = 1000


class OwnerSuspended(EventData):
    """Every key of the owner is refused until it is resumed."""

    TYPE: ClassVar[str] = "owner.suspended"


class OwnerResumed(EventData):
    """The owner's keys are judged by their own state again."""

    TYPE: ClassVar[str] = "owner.resumed"


class KeyCreated(EventData):
    """A key exists from now on. `prefix` and `last_four` are all of the secret that stays visible."""

    TYPE: ClassVar[str] = "key.created"
    id: int
    owner_id: int
    name: str
    description: str | None
    permissions: tuple[str, ...]
    limits: Limits
    expires_at: datetime | None
    addresses: tuple[str, ...]
    prefix: str
    last_four: str
    created_at: datetime


class KeyUpdated(EventData):
    """Name and description after a change of either."""

    TYPE: ClassVar[str] = "key.updated"
    name: str
    description: str | None


class KeyDeactivated(EventData):
    """The key is refused with 403 until it is reactivated."""

    TYPE: ClassVar[str] = "key.deactivated"


class KeyReactivated(EventData):
    """A deactivated key is good again."""

    TYPE: ClassVar[str] = "key.reactivated"


class KeyRotated(EventData):
    """The key has a new secret; the one before is good until `old_valid_until`."""

    TYPE: ClassVar[str] = "key.rotated"
    prefix: str
    last_four: str
    old_valid_until: datetime


class KeyRevoked(EventData):
    """The key is refused for ever and stays visible; why is the event's `reason`."""

    TYPE: ClassVar[str] = "key.revoked"


class KeyDeleted(EventData):
    """The key is refused for ever and gone from the API."""

    TYPE: ClassVar[str] = "key.deleted"


class KeyState(EventData):
    """All that the edge needs to judge a key, after the stream's version given in the envelope."""

    TYPE: ClassVar[str] = "key.state"
    id: int
    owner_id: int
    status: KeyStatus
    permissions: tuple[str, ...]
    limits: Limits
    expires_at: datetime | None
    addresses: tuple[str, ...]
    hashes: tuple[Hash, ...]


class OwnerState(EventData):
    """All that the edge needs to judge an owner."""

    TYPE: ClassVar[str] = "owner.state"
    id: int
    status: OwnerStatus


class Heartbeat(EventData):
    """The last record of each relay transaction in each partition that it wrote, and of each quiet second.

    `position` is the head of the log that this partition is complete up to; `streams` the number of keys and owners
    whose state lies in the partition: a reader that holds another number has lost some. `generation` counts how often
    the relay has sent again what Kafka had lost: a reader that was there before may hold offsets into what was written
    over, and reads from the start.
    """

    TYPE: ClassVar[str] = "states.heartbeat"
    SCHEMA_VERSION: ClassVar[int] = 2
    partition: int
    position: int
    streams: int
    generation: int = 0


EVENTS: tuple[type[EventData], ...] = (
    OwnerCreated,
    OwnerSuspended,
    OwnerResumed,
    KeyCreated,
    KeyUpdated,
    KeyDeactivated,
    KeyReactivated,
    KeyRotated,
    KeyRevoked,
    KeyDeleted,
)
STATES: tuple[type[EventData], ...] = (KeyState, OwnerState, Heartbeat)
