"""The life of owners and API keys: what a command leads to, and what an event makes of the state. Pure.

A key is active, inactive (deactivated, can be reactivated), revoked (final, stays visible) or deleted (final, gone).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.errors import Conflict, Invalid, NotFound, PermissionMissing, Unauthenticated
from shared.events import EventData
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
    OwnerCreated,
    OwnerResumed,
    OwnerStatus,
    OwnerSuspended,
)
from shared.events.requests import KeyUsage

ADMIN = "admin"
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Owner:
    """A user: has keys, sees only its own."""

    id: int
    name: str
    status: OwnerStatus
    max_keys: int


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
class Wanted:
    """What a creator asks of a new key; None: as the creator's, within the defaults."""

    name: str
    description: str | None = None
    permissions: frozenset[str] | None = None
    limits: Limits | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class NewSecret:
    """All of a secret that may be kept: its hash (hex) and the parts that stay visible."""

    hash: str
    prefix: str
    last_four: str


def create(
    key_id: int, owner: Owner, creator: Key | None, wanted: Wanted, secret: NewSecret, *, held_keys: int, now: datetime
) -> KeyCreated:
    """A new key of `owner`, never beyond its creator (none: made on the server itself, without bounds).

    `Conflict` when the owner holds as many keys as it may; `PermissionMissing` or `Invalid` when more was asked than
    the creator has.
    """
    if held_keys >= owner.max_keys:
        raise Conflict(f"The owner already has {owner.max_keys} API keys.")
    return KeyCreated(
        id=key_id,
        owner_id=owner.id,
        name=wanted.name,
        description=wanted.description,
        permissions=tuple(sorted(_permissions(creator, wanted))),
        limits=_limits(creator, wanted),
        expires_at=_expiry(creator, wanted, now),
        addresses=creator.addresses if creator and not _admin(creator) else (),
        prefix=secret.prefix,
        last_four=secret.last_four,
        created_at=now,
    )


def may_create(creator: Key | None, now: datetime) -> Key:
    """The creator, as long as it is good: an identity token outlives its key by up to a minute."""
    if creator is None or creator.status != "active" or (creator.expires_at and creator.expires_at <= now):
        raise Unauthenticated
    return creator


def update(key: Key | None, fields: dict[str, Any]) -> list[EventData]:
    """The events of a PUT of `name`, `description`, `is_active`: absent fields stay, no change gives no event."""
    key = visible(key)
    events: list[EventData] = []
    name, description = fields.get("name", key.name), fields.get("description", key.description)
    if (name, description) != (key.name, key.description):
        events.append(KeyUpdated(name=name, description=description))
    active = fields.get("is_active", key.status == "active")
    if key.status == "revoked":
        if active:
            raise Conflict("A revoked API key can't be reactivated.")
    elif active != (key.status == "active"):
        events.append(KeyReactivated() if active else KeyDeactivated())
    return events


def delete(key: Key | None) -> list[EventData]:
    """Deletion is final."""
    visible(key)
    return [KeyDeleted()]


def visible(key: Key | None) -> Key:
    """The key, unless it never was or is deleted."""
    if key is None or key.status == "deleted":
        raise NotFound("No such API key.")
    return key


def apply_key(key: Key | None, event: EventData, private: dict[str, Any] | None) -> Key:
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
            old = tuple(replace_until(known, event.old_valid_until) for known in key.hashes)
            return replace(key, prefix=event.prefix, last_four=event.last_four, hashes=old + _hash(private))
        case KeyRevoked():
            return replace(key, status="revoked")
        case KeyDeleted():
            return replace(key, status="deleted")
    return key


def replace_until(known: Hash, until: datetime) -> Hash:
    """The hash, good until `until` or, if that comes first, the end that it has already."""
    return Hash(hash=known.hash, valid_until=min(until, known.valid_until or until))


def create_owner(owner_id: int, name: str, *, now: datetime) -> OwnerCreated:
    """A new owner."""
    return OwnerCreated(id=owner_id, name=name, created_at=now)


def apply_owner(owner: Owner | None, event: EventData, _private: dict[str, Any] | None) -> Owner:
    """The owner after an event."""
    match event:
        case OwnerCreated():
            return Owner(id=event.id, name=event.name, status="active", max_keys=event.max_keys)
    if owner is None:
        raise AssertionError("an owner's first event is its creation")
    match event:
        case OwnerSuspended():
            return replace(owner, status="suspended")
        case OwnerResumed():
            return replace(owner, status="active")
    return owner


def newest(totals: Iterable[tuple[int, KeyUsage]]) -> list[tuple[int, KeyUsage]]:
    """Of each key's (epoch, totals) the newest, by key id: of the later epoch, or with the greater count."""
    found: dict[int, tuple[int, KeyUsage]] = {}
    for epoch, total in totals:
        held = found.get(total.key_id)
        if held is None or (epoch, total.usage_count) > (held[0], held[1].usage_count):
            found[total.key_id] = (epoch, total)
    return [found[key_id] for key_id in sorted(found)]


def _hash(private: dict[str, Any] | None) -> tuple[Hash, ...]:
    return (Hash(hash=private["hash"]),) if private else ()


def _admin(key: Key) -> bool:
    return ADMIN in key.permissions


def _permissions(creator: Key | None, wanted: Wanted) -> frozenset[str]:
    if creator is None:
        return wanted.permissions or frozenset()
    if wanted.permissions is None:
        return creator.permissions - {ADMIN}
    if not _admin(creator) and (beyond := wanted.permissions - creator.permissions):
        raise PermissionMissing(f"The creating key does not have: {', '.join(sorted(beyond))}.")
    return wanted.permissions


def _limits(creator: Key | None, wanted: Wanted) -> Limits:
    if creator is None or _admin(creator):
        return wanted.limits or DEFAULT_LIMITS
    if wanted.limits is None:
        return _narrower(DEFAULT_LIMITS, creator.limits)
    if _narrower(wanted.limits, creator.limits) != wanted.limits:
        raise PermissionMissing("The limits go beyond those of the creating key.")
    return wanted.limits


def _narrower(one: Limits, other: Limits) -> Limits:
    def least(a: int | None, b: int | None) -> int | None:
        return min((limit for limit in (a, b) if limit is not None), default=None)

    return Limits(
        minute=least(one.minute, other.minute), hour=least(one.hour, other.hour), day=least(one.day, other.day)
    )


def _expiry(creator: Key | None, wanted: Wanted, now: datetime) -> datetime | None:
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise Invalid(errors=[{"field": "expires_at", "message": "must be in the future"}])
    if creator is None or creator.expires_at is None or _admin(creator):
        return wanted.expires_at
    if wanted.expires_at is not None and wanted.expires_at > creator.expires_at:
        raise PermissionMissing("The expiry is later than that of the creating key.")
    return wanted.expires_at or creator.expires_at
