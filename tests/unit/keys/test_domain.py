"""The life of keys and owners: never beyond the creator's, final ends, no event without a change, replay gives the state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.keys.domain import owner as owners
from services.keys.domain.key import (
    ADMIN,
    DEFAULT_LIMITS,
    By,
    CreateKey,
    DeleteKey,
    Key,
    NewSecret,
    UpdateKey,
    apply,
    decide,
    judge,
    visible,
)
from services.keys.domain.owner import CreateOwner, Owner
from shared.errors import Conflict, Inactive, Invalid, NotFound, PermissionMissing, Problem, Unauthenticated
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
SUSPENDED = replace(OWNER, status="suspended")
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
_wanted: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "permissions": _permissions,
        "limits": st.dictionaries(st.sampled_from(["minute", "hour", "day"]), _limit),
        "expires_at": _moments,
    },
)
WINDOWS = ("minute", "hour", "day")


def _create(creator: Key | None, *, held: int = 0, owner: Owner = OWNER, **wanted: Any) -> KeyCreated:
    by = By(creator, OWNER) if creator else None
    command = CreateKey(by=by, id=2, owner=owner, held=held, secret=SECRET, now=NOW, name="new", **wanted)
    [event] = decide(command, None)
    assert isinstance(event.data, KeyCreated)
    assert event.private == {"hash": SECRET.hash}
    return event.data


def _within(one: int | None, other: int | None) -> bool:
    return other is None or (one is not None and one <= other)


def _assert_not_beyond(made: Key | KeyCreated, creator: Key) -> None:
    assert set(made.permissions) <= creator.permissions
    for window in WINDOWS:
        assert _within(getattr(made.limits, window), getattr(creator.limits, window))
    assert creator.expires_at is None or (made.expires_at is not None and made.expires_at <= creator.expires_at)
    assert made.addresses == creator.addresses


@given(_creators, _wanted)
def test_a_new_key_is_never_beyond_its_creator(creator: Key, wanted: dict[str, Any]) -> None:
    try:
        made = _create(creator, **wanted)
    except (PermissionMissing, Invalid):
        return
    if ADMIN not in creator.permissions:
        _assert_not_beyond(made, creator)


@given(_creators, _wanted)
def test_what_is_wanted_is_given_whole_or_refused(creator: Key, wanted: dict[str, Any]) -> None:
    try:
        made = _create(creator, **wanted)
    except (PermissionMissing, Invalid):
        return
    assert set(made.permissions) == wanted.get("permissions", set(made.permissions))
    assert wanted.get("limits", {}).items() <= made.limits.model_dump().items()
    assert wanted.get("expires_at", made.expires_at) == made.expires_at


@given(_creators)
def test_asking_for_nothing_is_never_refused(creator: Key) -> None:
    """But for the rate of a creator, whose limits may lie above the defaults: the defaults bound what is not asked for."""
    made = _create(creator)
    assert ADMIN not in made.permissions
    assert set(made.permissions) == creator.permissions - {ADMIN}
    for window in WINDOWS:
        assert _within(getattr(made.limits, window), getattr(DEFAULT_LIMITS, window))


@given(_creators, st.sampled_from(WINDOWS))
def test_asking_for_less_in_one_window_is_never_refused(creator: Key, window: str) -> None:
    """The windows that are not named are as if nothing had been asked."""
    made = _create(creator, limits={window: 1})
    assert made.limits == _create(creator).limits.model_copy(update={window: 1})


@given(_creators, _wanted)
def test_an_expiry_is_in_the_future_when_it_is_asked_for(creator: Key, wanted: dict[str, Any]) -> None:
    if wanted.get("expires_at", NOW) > NOW or "expires_at" not in wanted:
        return
    with pytest.raises(Problem):
        _create(creator, **wanted)


def test_admin_may_give_what_it_has_not() -> None:
    creator = _key(permissions=frozenset({ADMIN}), limits=Limits(minute=1, hour=1, day=1), addresses=("10.0.0.0/8",))
    made = _create(creator, permissions=frozenset({"usage:read"}), limits=UNLIMITED.model_dump())
    assert (made.permissions, made.limits, made.addresses) == (("usage:read",), UNLIMITED, ())


def test_the_server_itself_is_without_bounds() -> None:
    made = _create(None, permissions=frozenset({ADMIN}), limits=UNLIMITED.model_dump())
    assert (made.permissions, made.limits) == ((ADMIN,), UNLIMITED)
    assert _create(None).limits == DEFAULT_LIMITS


def test_a_key_that_was_made_is_not_made_again() -> None:
    command = CreateKey(by=None, id=2, owner=OWNER, held=1000, secret=SECRET, now=NOW, name="new")
    assert decide(command, _key(id=2)) == []


def test_an_owner_has_so_many_keys_and_no_more() -> None:
    assert _create(None, held=999).owner_id == 3
    with pytest.raises(Conflict, match="1000"):
        _create(None, held=1000)


@pytest.mark.parametrize("creator", [None, _key(permissions=frozenset({ADMIN}), owner_id=4)], ids=["server", "admin"])
def test_a_suspended_owner_gets_no_key_from_anybody(creator: Key | None) -> None:
    with pytest.raises(Conflict, match="suspended"):
        _create(creator, owner=SUSPENDED)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (None, Unauthenticated),
        ((_key(status="revoked"), OWNER), Unauthenticated),
        ((_key(status="deleted"), OWNER), Unauthenticated),
        ((_key(expires_at=NOW), OWNER), Unauthenticated),
        ((_key(status="revoked"), SUSPENDED), Unauthenticated),
        ((_key(status="inactive"), OWNER), Inactive),
        ((_key(), SUSPENDED), Inactive),
    ],
    ids=["none", "revoked", "deleted", "expired", "final first", "inactive", "owner suspended"],
)
def test_only_a_good_key_asks(found: tuple[Key, Owner] | None, problem: type[Problem]) -> None:
    """In the words of the edge, which says the same a moment later."""
    with pytest.raises(problem):
        judge(found, NOW)


def test_a_key_that_expires_later_asks() -> None:
    creator = _key(expires_at=NOW + timedelta(seconds=1))
    assert judge((creator, OWNER), NOW) == By(creator, OWNER)


@given(st.data())
def test_no_sequence_of_commands_leads_beyond_the_first_key(data: st.DataObject) -> None:
    """Keys make keys, which change and make others; each stays within its creator, and so within the first of all."""
    first = data.draw(_creators.filter(lambda key: ADMIN not in key.permissions))
    keys, creators = {first.id: first}, {}
    for number in range(2, data.draw(st.integers(3, 12))):
        asking = keys[data.draw(st.sampled_from(sorted(keys)))]
        by = By(asking, OWNER)
        about = data.draw(st.sampled_from(sorted(keys)))
        command: CreateKey | UpdateKey | DeleteKey = data.draw(
            st.one_of(
                _wanted.map(
                    lambda wanted, by=by, number=number: CreateKey(
                        by=by, id=number, owner=OWNER, held=0, secret=SECRET, now=NOW, name="new", **wanted
                    )
                ),
                st.builds(UpdateKey, st.just(by), name=st.none() | st.just("x"), is_active=st.none() | st.booleans()),
                st.just(DeleteKey(by)),
            )
        )
        about = number if isinstance(command, CreateKey) else about
        try:
            events = decide(command, keys.get(about))
        except Problem:
            continue
        for event in events:
            keys[about] = apply(keys.get(about), event.data, event.private)
        if isinstance(command, CreateKey):
            creators[about] = asking.id
    for key_id, key in keys.items():
        _assert_not_beyond(key, first)
        assert ADMIN not in key.permissions
        if key_id in creators:
            _assert_not_beyond(key, keys[creators[key_id]])


BY = By(_key(), OWNER)
ROTATED = KeyRotated(prefix="kl_live_", last_four="1111", old_valid_until=NOW + timedelta(hours=1))
CHANGES: dict[str, UpdateKey | DeleteKey] = {
    "rename": UpdateKey(BY, name="another"),
    "describe": UpdateKey(BY, description="words"),
    "forget": UpdateKey(BY, description=None),
    "activate": UpdateKey(BY, is_active=True),
    "deactivate": UpdateKey(BY, is_active=False),
    "all at once": UpdateKey(BY, name="x", description="y", is_active=False),
    "nothing": UpdateKey(BY),
    "delete": DeleteKey(BY),
}


def _events(command: UpdateKey | DeleteKey, key: Key | None) -> list[EventData]:
    return [event.data for event in decide(command, key)]


def _step(name: str, key: Key) -> list[EventData]:
    """The events of a command, or, where its issue has not come yet, what it will lead to."""
    if name == "revoke":
        return [KeyRevoked()] if visible(key, 3, admin=False).status != "revoked" else []
    if name == "rotate":
        return [ROTATED] if visible(key, 3, admin=False).status == "active" else []
    return _events(CHANGES[name], key)


PRIVATE = {"hash": "ef" * 32}


def _after(key: Key | None, events: list[EventData]) -> Key:
    for event in events:
        key = apply(key, event, PRIVATE if isinstance(event, KeyCreated | KeyRotated) else None)
    assert key is not None
    return key


@given(st.lists(st.sampled_from([*CHANGES, "revoke", "rotate"]), max_size=30))
def test_whatever_is_asked_the_log_tells_the_state(asked: list[str]) -> None:
    log: list[EventData] = [_create(None)]
    key = _after(None, log)
    for name in asked:
        try:
            events = _step(name, key)
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
    for command, found in ((CHANGES["rename"], gone), (CHANGES["delete"], gone), (CHANGES["delete"], None)):
        with pytest.raises(NotFound):
            decide(command, found)


def test_another_owner_s_key_is_not_there() -> None:
    others, admin = _key(owner_id=4), By(_key(permissions=frozenset({ADMIN})), OWNER)
    for command in CHANGES.values():
        with pytest.raises(NotFound):
            decide(command, others)
        assert decide(replace(command, by=admin), others) == decide(command, _key())


def test_a_revoked_key_stays_visible_and_never_comes_back() -> None:
    revoked = _after(_key(), [KeyRevoked()])
    assert visible(revoked, 3, admin=False) is revoked
    assert decide(CHANGES["deactivate"], revoked) == []
    with pytest.raises(Conflict):
        decide(CHANGES["activate"], revoked)
    assert [event.TYPE for event in _events(CHANGES["rename"], revoked)] == ["key.updated"]
    assert [event.TYPE for event in _events(CHANGES["delete"], revoked)] == ["key.deleted"]


def test_a_put_gives_one_event_for_words_and_one_for_activity() -> None:
    events = _events(CHANGES["all at once"], _key())
    assert [event.TYPE for event in events] == ["key.updated", "key.deactivated"]
    assert isinstance(_events(CHANGES["activate"], _key(status="inactive"))[0], KeyReactivated)


def test_a_field_that_is_absent_stays_and_null_empties() -> None:
    described = _key(description="words")
    assert decide(UpdateKey(BY, name="creator"), described) == []
    assert _after(described, _events(CHANGES["rename"], described)).description == "words"
    assert _after(described, _events(CHANGES["forget"], described)).description is None


def test_rotation_ends_old_secrets_and_never_prolongs_one() -> None:
    soon, later = NOW + timedelta(minutes=1), NOW + timedelta(hours=1)
    key = _key(hashes=(Hash(hash="aa" * 32, valid_until=soon), Hash(hash="bb" * 32)))
    rotated = _after(key, [ROTATED])
    assert [(known.hash[:2], known.valid_until) for known in rotated.hashes] == [
        ("aa", soon),
        ("bb", later),
        ("ef", None),
    ]
    assert rotated.last_four == "1111"


def test_an_owner_is_created_suspended_and_resumed() -> None:
    [created] = owners.decide(CreateOwner(3, "Ada", NOW), None)
    owner = owners.apply(None, created.data, created.private)
    assert owner == OWNER
    assert owners.decide(CreateOwner(3, "Ada", NOW), owner) == []
    assert owners.apply(owner, OwnerSuspended(), None) == SUSPENDED
    assert owners.apply(SUSPENDED, OwnerResumed(), None) == owner


def test_an_event_that_is_not_known_changes_nothing() -> None:
    class Later(EventData):
        TYPE = "key.later"

    assert apply(_key(), Later(), None) == _key()
    assert owners.apply(OWNER, Later(), None) == OWNER
