"""The life of API keys. Pure.

A key is active, inactive (deactivated, can be reactivated), revoked (final, stays visible) or deleted (final, gone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import EllipsisType
from typing import Any

from services.keys.domain.owner import Owner
from shared.errors import Conflict, Inactive, Invalid, NotFound, PermissionMissing, Unauthenticated
from shared.events import EventData, NewEvent
from shared.events.keys import (
    Hash,
    KeyCreated,
    KeyDeactivated,
    KeyDeleted,
    KeyReactivated,
    KeyRevoked,
    KeyRotated,
    KeyStatus,
    KeyUpdated,
    Limits,
)

ADMIN = "admin"
DEFAULT_LIMITS = Limits()
_WINDOWS = ("minute", "hour", "day")


@dataclass(frozen=True)
class Key:
    """An API key after its events. `hashes` lists every secret that it has answered to, and until when each is good."""

    id: int
    owner_id: int
    name: str
    description: str | None
    status: KeyStatus
    permissions: frozenset[str]
    limits: Limits
    expires_at: datetime | None
    addresses: tuple[str, ...]
    prefix: str
    last_four: str
    hashes: tuple[Hash, ...]
    created_at: datetime


@dataclass(frozen=True)
class By:
    """Who asks for a command, good at this moment (`judge` makes it): a key, and its owner."""

    key: Key
    owner: Owner

    @property
    def admin(self) -> bool:
        """Whether it may touch every owner's keys, and give what it does not have."""
        return ADMIN in self.key.permissions


@dataclass(frozen=True)
class NewSecret:
    """All of a secret that may be kept: its hash (hex) and the parts that stay visible."""

    hash: str
    prefix: str
    last_four: str


@dataclass(frozen=True)
class CreateKey:
    """A new key of `owner`, which holds `held` keys. `by` None: made on the server itself, without bounds.

    What is not asked for is as the creator's: None, and windows that `limits` does not name; those within the defaults.
    """

    by: By | None
    id: int
    owner: Owner
    held: int
    secret: NewSecret
    now: datetime
    name: str
    description: str | None = None
    permissions: frozenset[str] | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    expires_at: datetime | None = None


@dataclass(frozen=True)
class UpdateKey:
    """What is to change of a key: None, for the description `...`, stays as it is."""

    by: By
    name: str | None = None
    description: str | EllipsisType | None = ...
    is_active: bool | None = None


@dataclass(frozen=True)
class DeleteKey:
    """The key's end."""

    by: By


Command = CreateKey | UpdateKey | DeleteKey


def judge(found: tuple[Key, Owner] | None, now: datetime) -> By:
    """Who asks, as long as it is good: an identity token outlives its key, and its owner's suspension, by up to a minute."""
    key, owner = found or (None, None)
    if key is None or owner is None or key.status in ("revoked", "deleted"):
        raise Unauthenticated
    if key.expires_at is not None and key.expires_at <= now:
        raise Unauthenticated
    if key.status != "active" or owner.status != "active":
        raise Inactive
    return By(key, owner)


def decide(command: Command, key: Key | None) -> list[NewEvent]:
    """The events that the command leads to: none when there is nothing to change, or it was carried out before.

    `NotFound` when there is no such key for who asks; `Conflict` when the state does not allow it; `PermissionMissing`
    or `Invalid` when more was asked than may be given.
    """
    match command:
        case CreateKey():
            return [] if key else [NewEvent(_created(command), {"hash": command.secret.hash})]
        case UpdateKey():
            return [
                NewEvent(event)
                for event in _updated(command, visible(key, command.by.owner.id, admin=command.by.admin))
            ]
        case DeleteKey():
            visible(key, command.by.owner.id, admin=command.by.admin)
            return [NewEvent(KeyDeleted())]


# Creation, never beyond the creator: its permissions, limits, expiry and addresses. An admin, and the server, may.


def _created(command: CreateKey) -> KeyCreated:
    owner, by = command.owner, command.by
    if owner.status != "active":
        raise Conflict("The owner is suspended.")
    if command.held >= owner.max_keys:
        raise Conflict(f"The owner already has {owner.max_keys} API keys.")
    if command.expires_at is not None and command.expires_at <= command.now:
        raise Invalid(errors=[{"field": "expires_at", "message": "must be in the future"}])
    creator = None if by is None or by.admin else by.key
    return KeyCreated(
        id=command.id,
        owner_id=owner.id,
        name=command.name,
        description=command.description,
        permissions=tuple(sorted(_permissions(command))),
        limits=_limits(command.limits, creator),
        expires_at=_expiry(command.expires_at, creator),
        addresses=creator.addresses if creator else (),
        prefix=command.secret.prefix,
        last_four=command.secret.last_four,
        created_at=command.now,
    )


def _permissions(command: CreateKey) -> frozenset[str]:
    wanted, by = command.permissions, command.by
    if by is None:
        return wanted or frozenset()
    if wanted is None:
        return by.key.permissions - {ADMIN}
    if not by.admin and (beyond := wanted - by.key.permissions):
        raise PermissionMissing(f"The creating key does not have: {', '.join(sorted(beyond))}.")
    return wanted


def _limits(wanted: Mapping[str, int | None], creator: Key | None) -> Limits:
    if creator is None:
        return DEFAULT_LIMITS.model_copy(update=wanted)
    limits = _narrower(DEFAULT_LIMITS, creator.limits).model_copy(update=wanted)
    if _narrower(limits, creator.limits) != limits:
        raise PermissionMissing("The limits go beyond those of the creating key.")
    return limits


def _narrower(one: Limits, other: Limits) -> Limits:
    pairs = {window: (getattr(one, window), getattr(other, window)) for window in _WINDOWS}
    return Limits(**{window: min((n for n in pair if n is not None), default=None) for window, pair in pairs.items()})


def _expiry(wanted: datetime | None, creator: Key | None) -> datetime | None:
    if creator is None or creator.expires_at is None:
        return wanted
    if wanted is not None and wanted > creator.expires_at:
        raise PermissionMissing("The expiry is later than that of the creating key.")
    return wanted or creator.expires_at


# Changes, which give nothing that the key did not have.


def visible(key: Key | None, owner_id: int, *, admin: bool) -> Key:
    """The key, unless it never was, is deleted, or is another owner's (and the caller not `admin`)."""
    if key is None or key.status == "deleted" or (key.owner_id != owner_id and not admin):
        raise NotFound("No such API key.")
    return key


def _updated(command: UpdateKey, key: Key) -> list[EventData]:
    events: list[EventData] = []
    name = key.name if command.name is None else command.name
    description = key.description if command.description is ... else command.description
    if (name, description) != (key.name, key.description):
        events.append(KeyUpdated(name=name, description=description))
    active = key.status == "active"
    wanted = active if command.is_active is None else command.is_active
    if key.status == "revoked":
        if wanted:
            raise Conflict("A revoked API key can't be reactivated.")
    elif wanted != active:
        events.append(KeyReactivated() if wanted else KeyDeactivated())
    return events


def apply(key: Key | None, event: EventData, private: dict[str, Any] | None) -> Key:
    """The key after an event. Never fails on what was once recorded."""
    match event:
        case KeyCreated():
            return Key(
                id=event.id,
                owner_id=event.owner_id,
                name=event.name,
                description=event.description,
                status="active",
                permissions=frozenset(event.permissions),
                limits=event.limits,
                expires_at=event.expires_at,
                addresses=event.addresses,
                prefix=event.prefix,
                last_four=event.last_four,
                hashes=_hash(private),
                created_at=event.created_at,
            )
    if key is None:
        raise AssertionError("a key's first event is its creation")
    match event:
        case KeyUpdated():
            return replace(key, name=event.name, description=event.description)
        case KeyDeactivated():
            return replace(key, status="inactive")
        case KeyReactivated():
            return replace(key, status="active")
        case KeyRotated():
            old = tuple(_good_until(known, event.old_valid_until) for known in key.hashes)
            return replace(key, prefix=event.prefix, last_four=event.last_four, hashes=old + _hash(private))
        case KeyRevoked():
            return replace(key, status="revoked")
        case KeyDeleted():
            return replace(key, status="deleted")
    return key


def _good_until(known: Hash, until: datetime) -> Hash:
    return Hash(hash=known.hash, valid_until=min(until, known.valid_until or until))


def _hash(private: dict[str, Any] | None) -> tuple[Hash, ...]:
    return (Hash(hash=private["hash"]),) if private else ()
