"""The life of owners: users that have keys, and see only their own. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.events import EventData, NewEvent
from shared.events.keys import OwnerCreated, OwnerResumed, OwnerStatus, OwnerSuspended


@dataclass(frozen=True)
class Owner:
    """An owner after its events. It may hold at most `max_keys` keys that are not deleted."""

    id: int
    name: str
    status: OwnerStatus
    max_keys: int


@dataclass(frozen=True)
class CreateOwner:
    """A new owner."""

    id: int
    name: str
    now: datetime


def decide(command: CreateOwner, owner: Owner | None) -> list[NewEvent]:
    """The events that the command leads to: none when it was carried out before."""
    return [] if owner else [NewEvent(OwnerCreated(id=command.id, name=command.name, created_at=command.now))]


def apply(owner: Owner | None, event: EventData, _private: dict[str, Any] | None) -> Owner:
    """The owner after an event. Never fails on what was once recorded."""
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
