"""The life of keys and owners: never beyond the creator's, final ends, no event without a change, replay gives the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.keys import domain
from services.keys.domain import ADMIN, DEFAULT_LIMITS, Key, NewSecret, Owner, Wanted, apply_key, apply_owner
from shared.errors import Conflict, Invalid, NotFound, PermissionMissing, Problem, Unauthenticated
from shared.events import EventData
from shared.events.keys import (
    UNLIMITED,
    Hash,
    KeyCreated,
    KeyDeleted,
    KeyReactivated,
    KeyRevoked,
    KeyRotated,
    Limits,
    OwnerResumed,
    OwnerSuspended,
)

NOW = datetime(2024, 3, 20, 12, tzinfo=UTC)
OWNER = Owner(3, "Ada", "active", 1000)
SECRET = NewSecret("ab" * 32, "kl_live_", "aB3x")

_moments = st.timedeltas(timedelta(days=-2), timedelta(days=2)).map(lambda since: NOW + since)
_limit = st.none() | st.integers(1, 20_000)
_limits = st.builds(Limits, minute=_limit, hour=_limit, day=_limit)
_permissions = st.frozensets(st.sampled_from([ADMIN, "tickets:read", "tickets:write", "usage:read"]))


def _key(**fields: Any) -> Key:
    made: dict[str, Any] = {
        "id": 1,
        "owner_id": 3,
        "name": "creator",
        "description": None,
        "status": "active",
        "permissions": frozenset(),
        "limits": DEFAULT_LIMITS,
        "expires_at": None,
        "addresses": (),
        "prefix": "kl_live_",
        "last_four": "0000",
        "hashes": (Hash(hash="cd" * 32),),
        "created_at": NOW - timedelta(days=3),
    }
    return Key(**made | fields)


_creators = st.builds(
    _key,
    permissions=_permissions,
    limits=_limits,
    expires_at=st.none() | _moments,
    addresses=st.sampled_from([(), ("10.0.0.0/8",), ("192.0.2.1/32", "2001:db8::/32")]),
)
_wanted = st.builds(
    Wanted,
    name=st.just("new"),
    permissions=st.none() | _permissions,
    limits=st.none() | _limits,
    expires_at=st.none() | _moments,
)


def _create(creator: Key | None, wanted: Wanted, held: int = 0) -> KeyCreated:
    return domain.create(2, OWNER, creator, wanted, SECRET, held_keys=held, now=NOW)


def _within(one: int | None, other: int | None) -> bool:
    return other is None or (one is not None and one <= other)


@given(_creators, _wanted)
def test_a_new_key_is_never_beyond_its_creator(creator: Key, wanted: Wanted) -> None:
    try:
        made = _create(creator, wanted)
    except (PermissionMissing, Invalid):
        return
    if ADMIN in creator.permissions:
        return
    assert set(made.permissions) <= creator.permissions
    for window in ("minute", "hour", "day"):
        assert _within(getattr(made.limits, window), getattr(creator.limits, window))
    assert creator.expires_at is None or (made.expires_at is not None and made.expires_at <= creator.expires_at)
    assert made.addresses == creator.addresses


@given(_creators, _wanted)
def test_what_is_wanted_is_given_whole_or_refused(creator: Key, wanted: Wanted) -> None:
    try:
        made = _create(creator, wanted)
    except (PermissionMissing, Invalid):
        return
    if wanted.permissions is not None:
        assert set(made.permissions) == wanted.permissions
    if wanted.limits is not None:
        assert made.limits == wanted.limits
    if wanted.expires_at is not None:
        assert made.expires_at == wanted.expires_at


@given(_creators)
def test_asking_for_nothing_is_never_refused(creator: Key) -> None:
    """But for the rate of a creator, whose limits may lie above the defaults: the defaults bound what is not asked for."""
    made = _create(creator, Wanted(name="new"))
    assert ADMIN not in made.permissions
    assert set(made.permissions) == creator.permissions - {ADMIN}
    for window in ("minute", "hour", "day"):
        assert _within(getattr(made.limits, window), getattr(DEFAULT_LIMITS, window))


@given(_creators, _wanted)
def test_an_expiry_is_in_the_future_when_it_is_asked_for(creator: Key, wanted: Wanted) -> None:
    if wanted.expires_at is None or wanted.expires_at > NOW:
        return
    with pytest.raises(Problem):
        _create(creator, wanted)


def test_admin_may_give_what_it_has_not() -> None:
    creator = _key(permissions=frozenset({ADMIN}), limits=Limits(minute=1, hour=1, day=1), addresses=("10.0.0.0/8",))
    made = _create(creator, Wanted("new", permissions=frozenset({"usage:read"}), limits=UNLIMITED))
    assert (made.permissions, made.limits, made.addresses) == (("usage:read",), UNLIMITED, ())


def test_the_server_itself_is_without_bounds() -> None:
    made = _create(None, Wanted("new", permissions=frozenset({ADMIN}), limits=UNLIMITED))
    assert (made.permissions, made.limits) == ((ADMIN,), UNLIMITED)
    assert _create(None, Wanted("new")).limits == DEFAULT_LIMITS


def test_an_owner_has_so_many_keys_and_no_more() -> None:
    assert _create(None, Wanted("new"), held=999).owner_id == 3
    with pytest.raises(Conflict, match="1000"):
        _create(None, Wanted("new"), held=1000)


@pytest.mark.parametrize(
    "creator",
    [None, *(_key(status=status) for status in ("inactive", "revoked", "deleted")), _key(expires_at=NOW)],
    ids=["none", "inactive", "revoked", "deleted", "expired"],
)
def test_only_a_good_key_creates(creator: Key | None) -> None:
    with pytest.raises(Unauthenticated):
        domain.may_create(creator, NOW)


def test_a_key_that_expires_later_creates() -> None:
    creator = _key(expires_at=NOW + timedelta(seconds=1))
    assert domain.may_create(creator, NOW) is creator


Step = Callable[[Key], list[EventData]]


def _rotate(key: Key) -> list[EventData]:
    return [KeyRotated(prefix="kl_live_", last_four="1111", old_valid_until=NOW + timedelta(hours=1))]


STEPS: dict[str, Step] = {
    "rename": lambda key: domain.update(key, {"name": "another"}),
    "describe": lambda key: domain.update(key, {"description": "words"}),
    "forget": lambda key: domain.update(key, {"description": None}),
    "activate": lambda key: domain.update(key, {"is_active": True}),
    "deactivate": lambda key: domain.update(key, {"is_active": False}),
    "all at once": lambda key: domain.update(key, {"name": "x", "description": "y", "is_active": False}),
    "nothing": lambda key: domain.update(key, {}),
    "delete": domain.delete,
    "revoke": lambda key: [KeyRevoked()] if domain.visible(key).status != "revoked" else [],
    "rotate": lambda key: _rotate(key) if domain.visible(key).status == "active" else [],
}
PRIVATE = {"hash": "ef" * 32}


def _after(key: Key | None, events: list[EventData]) -> Key:
    for event in events:
        key = apply_key(key, event, PRIVATE if isinstance(event, KeyCreated | KeyRotated) else None)
    assert key is not None
    return key


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=30))
def test_whatever_is_asked_the_log_tells_the_state(asked: list[str]) -> None:
    log: list[EventData] = [_create(None, Wanted("new"))]
    key = _after(None, log)
    for name in asked:
        try:
            events: list[EventData] = STEPS[name](key)
        except Problem as problem:
            assert isinstance(problem, NotFound if key.status == "deleted" else Conflict)
            events = []
        after = _after(key, events)
        assert (after != key) == bool(events)
        assert key.status != "deleted" or after == key
        assert key.status != "revoked" or after.status in ("revoked", "deleted")
        assert (after.id, after.owner_id, after.created_at) == (key.id, key.owner_id, key.created_at)
        assert {known.hash for known in key.hashes} <= {known.hash for known in after.hashes}
        log += events
        key = after
    assert _after(None, log) == key


def test_a_deleted_key_is_gone_for_every_command() -> None:
    gone = _after(_key(), [KeyDeleted()])
    for command in (
        lambda: domain.update(gone, {"name": "x"}),
        lambda: domain.delete(gone),
        lambda: domain.delete(None),
    ):
        with pytest.raises(NotFound):
            command()


def test_a_revoked_key_stays_visible_and_never_comes_back() -> None:
    revoked = _after(_key(), [KeyRevoked()])
    assert domain.visible(revoked) is revoked
    assert domain.update(revoked, {"is_active": False}) == []
    with pytest.raises(Conflict):
        domain.update(revoked, {"is_active": True})
    assert [event.TYPE for event in domain.update(revoked, {"name": "x"})] == ["key.updated"]
    assert [event.TYPE for event in domain.delete(revoked)] == ["key.deleted"]


def test_a_put_gives_one_event_for_words_and_one_for_activity() -> None:
    events = domain.update(_key(), {"name": "x", "description": "y", "is_active": False})
    assert [event.TYPE for event in events] == ["key.updated", "key.deactivated"]
    assert isinstance(domain.update(_key(status="inactive"), {"is_active": True})[0], KeyReactivated)


def test_a_field_that_is_absent_stays_and_null_empties() -> None:
    described = _key(description="words")
    assert domain.update(described, {"name": "creator"}) == []
    assert _after(described, domain.update(described, {"name": "x"})).description == "words"
    assert _after(described, domain.update(described, {"description": None})).description is None


def test_rotation_ends_old_secrets_and_never_prolongs_one() -> None:
    soon, later = NOW + timedelta(minutes=1), NOW + timedelta(hours=1)
    key = _key(hashes=(Hash(hash="aa" * 32, valid_until=soon), Hash(hash="bb" * 32)))
    rotated = _after(key, [KeyRotated(prefix="kl_live_", last_four="1111", old_valid_until=later)])
    assert [(known.hash[:2], known.valid_until) for known in rotated.hashes] == [
        ("aa", soon),
        ("bb", later),
        ("ef", None),
    ]
    assert rotated.last_four == "1111"


def test_an_owner_is_suspended_and_resumed() -> None:
    owner = apply_owner(None, domain.create_owner(3, "Ada", now=NOW), None)
    assert owner == OWNER
    suspended = apply_owner(owner, OwnerSuspended(), None)
    assert suspended == replace(owner, status="suspended")
    assert apply_owner(suspended, OwnerResumed(), None) == owner


def test_an_event_that_is_not_known_changes_nothing() -> None:
    class Later(EventData):
        TYPE = "key.later"

    assert apply_key(_key(), Later(), None) == _key()
    assert apply_owner(OWNER, Later(), None) == OWNER
