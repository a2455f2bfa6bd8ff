"""The edge's decision: every outcome, their order, and what a caller can tell from the answer."""

from __future__ import annotations

import itertools
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.edge.domain import (
    KeyState,
    Limits,
    Outcome,
    OwnerState,
    decide,
    decision,
    metered,
    problem,
    valid_until_ns,
)
from shared.events.requests import Decision

HASH, OLD, OTHER = b"h" * 32, b"o" * 32, b"x" * 32
NOW = 1_000_000

KEY = KeyState(
    id=7,
    owner_id=3,
    epoch=1,
    version=4,
    status="active",
    permissions=frozenset({"read"}),
    limits=Limits(100, 1000, 10000),
    hashes=((HASH, None), (OLD, NOW)),
)
OWNER = OwnerState(id=3, epoch=1, version=1, status="active")


def judge(
    key: KeyState | None = KEY,
    owner: OwnerState | None = OWNER,
    presented: bytes = HASH,
    *,
    wall_ns: int = NOW,
    address: str | None = "192.0.2.1",
    permission: str | None = "read",
    stale: bool = False,
) -> Outcome:
    return decide(key, owner, presented, wall_ns=wall_ns, address=address, permission=permission, stale=stale)


def key_with(**changes: object) -> KeyState:
    return msgspec.structs.replace(KEY, **changes)


def owner_with(status: str) -> OwnerState:
    return msgspec.structs.replace(OWNER, status=status)


def test_a_good_key_is_allowed() -> None:
    assert judge() is Outcome.allowed


def test_every_outcome_is_metered_exactly_if_it_is_a_decision_of_request_events() -> None:
    decisions = set(get_args(Decision))
    assert {decision(outcome) for outcome in Outcome if metered(outcome)} == decisions


def test_every_refusal_has_a_problem_and_allowed_has_none() -> None:
    codes = {outcome: problem(outcome)[:2] for outcome in Outcome if outcome is not Outcome.allowed}
    assert codes == {
        Outcome.missing: (401, "key_invalid"),
        Outcome.malformed: (401, "key_invalid"),
        Outcome.unknown: (401, "key_invalid"),
        Outcome.revoked: (401, "key_invalid"),
        Outcome.deleted: (401, "key_invalid"),
        Outcome.expired: (401, "key_invalid"),
        Outcome.inactive: (403, "key_inactive"),
        Outcome.owner_suspended: (403, "key_inactive"),
        Outcome.forbidden: (403, "permission_missing"),
        Outcome.address_refused: (403, "address_refused"),
        Outcome.rate_limited: (429, "rate_limited"),
        Outcome.too_many_open: (429, "too_many_open"),
        Outcome.not_ready: (503, "not_ready"),
    }
    with pytest.raises(KeyError):
        problem(Outcome.allowed)


def test_all_answers_with_one_code_are_the_same_answer() -> None:
    answers = {problem(outcome) for outcome in Outcome if outcome is not Outcome.allowed}
    assert len(answers) == len({code for _, code, _ in answers})


def test_an_unknown_key_is_not_ready_only_while_the_replica_is_stale() -> None:
    assert judge(key=None, owner=None) is Outcome.unknown
    assert judge(key=None, owner=None, stale=True) is Outcome.not_ready
    assert judge(stale=True) is Outcome.allowed


def test_a_hash_is_good_until_its_end_and_expired_from_then_on() -> None:
    assert judge(presented=OLD, wall_ns=NOW - 1) is Outcome.allowed
    assert judge(presented=OLD, wall_ns=NOW) is Outcome.expired


def test_a_hash_that_the_state_does_not_list_is_unknown() -> None:
    assert judge(presented=OTHER) is Outcome.unknown
    assert judge(key=key_with(hashes=())) is Outcome.unknown


def test_what_is_allowed_is_so_until_the_first_end() -> None:
    ends = [None, NOW + 1, NOW + 2, NOW + 3]
    for expires, until, others in itertools.product(ends, ends, ends):
        key = key_with(expires_at_ns=expires, hashes=((OTHER, others), (HASH, until)))
        end = valid_until_ns(key, HASH)
        seen = [judge(key, wall_ns=at) is Outcome.allowed for at in range(NOW, NOW + 4)]
        assert seen == [at < end for at in range(NOW, NOW + 4)]


def test_a_key_is_good_until_it_expires() -> None:
    assert judge(key=key_with(expires_at_ns=NOW + 1)) is Outcome.allowed
    assert judge(key=key_with(expires_at_ns=NOW)) is Outcome.expired


@pytest.mark.parametrize("status", ["unreadable", "", "Active", "paused"])
def test_a_status_that_no_rule_knows_is_never_allowed(status: str) -> None:
    assert judge(key=key_with(status=status)) is Outcome.not_ready
    assert judge(owner=owner_with(status)) is Outcome.not_ready


@given(permission=st.none() | st.text(max_size=5), held=st.frozensets(st.text(max_size=5), max_size=3))
@example("write", frozenset({"admin"}))
@example("admin", frozenset({"read"}))
@settings(deadline=None)
def test_a_permission_is_held_by_name_or_as_admin(permission: str | None, held: frozenset[str]) -> None:
    enough = permission is None or permission in held or "admin" in held
    outcome = judge(key=key_with(permissions=held), permission=permission)
    assert outcome is (Outcome.allowed if enough else Outcome.forbidden)


@pytest.mark.parametrize(
    ("addresses", "client", "within"),
    [
        ((), None, True),
        (("192.0.2.0/24",), "192.0.2.255", True),
        (("192.0.2.0/24",), "192.0.3.0", False),
        (("192.0.2.7",), "192.0.2.7", True),
        (("192.0.2.7/24",), "192.0.2.1", True),
        (("192.0.2.0/24",), "::ffff:192.0.2.9", True),
        (("192.0.2.0/24",), "2001:db8::1", False),
        (("2001:db8::/32", "10.0.0.0/8"), "10.1.2.3", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("192.0.2.0/24",), None, False),
        (("192.0.2.0/24",), "", False),
        (("192.0.2.0/24",), "192.0.2.1, 10.0.0.1", False),
        (("0.0.0.0/0",), "not an address", False),
        (("nonsense",), "192.0.2.1", False),
        (("nonsense", "192.0.2.0/24"), "192.0.2.1", True),
    ],
)
def test_addresses(addresses: tuple[str, ...], client: str | None, within: bool) -> None:
    outcome = judge(key=key_with(addresses=addresses), address=client)
    assert outcome is (Outcome.allowed if within else Outcome.address_refused)


STATUSES = ("active", "inactive", "revoked", "deleted", "something else")
EXPIRIES = (None, NOW - 1, NOW, NOW + 1)
HASHES = (HASH, OLD, OTHER)
OWNERS = (None, "active", "suspended", "something else")
ADDRESSES: tuple[tuple[str, ...], ...] = ((), ("192.0.2.0/24",), ("10.0.0.0/8",))
PERMISSIONS = (None, "read", "write", "admin")


def expected(status: str, expiry: int | None, presented: bytes, owner: str | None, within: bool, held: bool) -> Outcome:
    """The rule once more, as a list from the gravest reason to none."""
    reasons = [
        (status == "deleted", Outcome.deleted),
        (status == "revoked", Outcome.revoked),
        (expiry is not None and expiry <= NOW, Outcome.expired),
        (presented == OLD, Outcome.expired),
        (presented == OTHER, Outcome.unknown),
        (status == "inactive", Outcome.inactive),
        (status != "active", Outcome.not_ready),
        (owner is None, Outcome.not_ready),
        (owner == "suspended", Outcome.owner_suspended),
        (owner != "active", Outcome.not_ready),
        (not within, Outcome.address_refused),
        (not held, Outcome.forbidden),
    ]
    return next((outcome for applies, outcome in reasons if applies), Outcome.allowed)


def test_the_gravest_reason_is_told_for_every_combination() -> None:
    everything = itertools.product(STATUSES, EXPIRIES, HASHES, OWNERS, ADDRESSES, PERMISSIONS)
    for status, expiry, presented, owner, addresses, permission in everything:
        key = key_with(status=status, expires_at_ns=expiry, addresses=addresses)
        outcome = judge(key, owner_with(owner) if owner else None, presented, permission=permission)
        within, held = addresses != ("10.0.0.0/8",), permission in (None, "read")
        assert outcome is expected(status, expiry, presented, owner, within, held)


def test_who_is_not_active_in_every_way_is_never_allowed() -> None:
    for status, owner in itertools.product(STATUSES, OWNERS):
        outcome = judge(key_with(status=status), owner_with(owner) if owner else None)
        assert (outcome is Outcome.allowed) == (status == owner == "active")
