"""How the edge judges a request: a key's and its owner's state in, one outcome of a closed list out. No I/O, no clock."""

from __future__ import annotations

import ipaddress
from enum import StrEnum

import msgspec

from services.edge.memo import Memo

ADMIN = "admin"
NEVER = 1 << 62


class Limits(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Requests admitted in any sliding minute, hour and day; None is without limit."""

    minute: int | None = None
    hour: int | None = None
    day: int | None = None


Policy = tuple[str, int, int, int, int]


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What the limits say to one request, and what its headers tell.

    `limit`, `remaining` and `reset_ns` (boot clock) are of one window: the one with the fewest remaining, of equals the
    longest; at a refusal the exhausted one that frees last. `reset_ns` is when Remaining next rises; at a refusal, when
    all windows admit one, and a request at that moment is admitted if none was in between.
    `shown` is its name. `limit` None: the key has no limits. `policies` has a (name, limit, window in s, remaining, reset_ns)
    for each limited window; none when a request was admitted, for `peek` tells of all then.
    """

    allowed: bool
    limit: int | None
    remaining: int
    reset_ns: int
    limits: Limits
    shown: str
    policies: tuple[Policy, ...] = ()


class KeyState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key as the replica holds it: the fast twin of `shared.events.keys.KeyState` with its place in the log.

    Times are wall-clock nanoseconds; a hash is 32 bytes with the end of its validity (None: as long as the key).
    """

    id: int
    owner_id: int
    epoch: int
    version: int
    status: str
    permissions: frozenset[str] = frozenset()
    limits: Limits = Limits()
    expires_at_ns: int | None = None
    addresses: tuple[str, ...] = ()
    hashes: tuple[tuple[bytes, int | None], ...] = ()


class OwnerState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An owner as the replica holds it."""

    id: int
    epoch: int
    version: int
    status: str


class Outcome(StrEnum):
    """Every way in which a request's key can be judged; `decision` says what the metered ones are in request events."""

    allowed = "allowed"
    rate_limited = "rate_limited"
    too_many_open = "too_many_open"
    inactive = "inactive"
    owner_suspended = "owner_suspended"
    forbidden = "forbidden"
    address_refused = "address_refused"
    revoked = "revoked"
    deleted = "deleted"
    expired = "expired"
    missing = "missing"
    malformed = "malformed"
    unknown = "unknown"
    not_ready = "not_ready"


_UNMETERED = frozenset({Outcome.missing, Outcome.malformed, Outcome.unknown, Outcome.not_ready})

# One answer for all that a caller could use to tell an unknown key from one that once was good.
_INVALID = (401, "key_invalid", "Invalid or missing API key")
_INACTIVE = (403, "key_inactive", "API key is inactive")

_PROBLEMS: dict[Outcome, tuple[int, str, str]] = {
    Outcome.missing: _INVALID,
    Outcome.malformed: _INVALID,
    Outcome.unknown: _INVALID,
    Outcome.revoked: _INVALID,
    Outcome.deleted: _INVALID,
    Outcome.expired: _INVALID,
    Outcome.inactive: _INACTIVE,
    Outcome.owner_suspended: _INACTIVE,
    Outcome.forbidden: (403, "permission_missing", "The API key lacks a permission"),
    Outcome.address_refused: (403, "address_refused", "The API key may not be used from this address"),
    Outcome.rate_limited: (429, "rate_limited", "Rate limit exceeded"),
    Outcome.too_many_open: (429, "too_many_open", "Too many requests of this API key are under way"),
    Outcome.not_ready: (503, "not_ready", "The edge is not ready to judge this request"),
}


def decide(
    key: KeyState | None,
    owner: OwnerState | None,
    presented_hash: bytes,
    *,
    wall_ns: int,
    address: str | None,
    permission: str | None,
    stale: bool = False,
) -> Outcome:
    """Judges a request by all but the limits, which come after.

    What is final (401) is said before what may pass (403), and both before address and permission. A status that this
    edge does not know refuses with `not_ready`, as does an owner whose state is not held. `stale`: the replica may lack
    the newest keys, so an unknown one is `not_ready` as well. `permission` None: the route asks for none.
    """
    if key is None:
        return Outcome.not_ready if stale else Outcome.unknown
    return (
        _ended(key, presented_hash, wall_ns)
        or _paused(key, owner)
        or _out_of_bounds(key, address, permission)
        or Outcome.allowed
    )


def _ended(key: KeyState, presented_hash: bytes, wall_ns: int) -> Outcome | None:
    if key.status == "deleted":
        return Outcome.deleted
    if key.status == "revoked":
        return Outcome.revoked
    if key.expires_at_ns is not None and key.expires_at_ns <= wall_ns:
        return Outcome.expired
    for known, valid_until_ns in key.hashes:
        if known == presented_hash:
            return Outcome.expired if valid_until_ns is not None and valid_until_ns <= wall_ns else None
    return Outcome.unknown


def _paused(key: KeyState, owner: OwnerState | None) -> Outcome | None:
    if key.status == "inactive":
        return Outcome.inactive
    if key.status != "active" or owner is None:
        return Outcome.not_ready
    if owner.status == "active":
        return None
    return Outcome.owner_suspended if owner.status == "suspended" else Outcome.not_ready


def _out_of_bounds(key: KeyState, address: str | None, permission: str | None) -> Outcome | None:
    if key.addresses and not _within(address, key.addresses):
        return Outcome.address_refused
    if permission is None or permission in key.permissions or ADMIN in key.permissions:
        return None
    return Outcome.forbidden


def valid_until_ns(key: KeyState, presented_hash: bytes) -> int:
    """Until when (wall clock) time alone changes nothing of what `decide` says of a key that it allows."""
    ends = [key.expires_at_ns, *(until_ns for known, until_ns in key.hashes if known == presented_hash)]
    return min((end for end in ends if end is not None), default=NEVER)


def metered(outcome: Outcome) -> bool:
    """Whether the answer has a row in the usage log: the key's state was held and judged."""
    return outcome not in _UNMETERED


def decision(outcome: Outcome) -> str:
    """What request events call it. Their decisions are published as a closed list, so a kind of 429 that came later is in
    them as the other one.
    """
    return Outcome.rate_limited.value if outcome is Outcome.too_many_open else outcome.value


def problem(outcome: Outcome) -> tuple[int, str, str]:
    """Status, code and title of the answer to a refused request (RFC 9457). `KeyError` for `allowed`, which has none."""
    return _PROBLEMS[outcome]


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_Cidrs = tuple[str, ...]


def _networks_size(cidrs: _Cidrs, _networks: tuple[Network, ...]) -> int:
    return 200 + 700 * len(cidrs)


def _judged_size(pair: tuple[str | None, _Cidrs], _within: bool) -> int:
    return 300 + 100 * len(pair[1])


# Who holds a key chooses its list and the addresses to come from.
_MEMO = 8 * 1024 * 1024
_networks_of: Memo[_Cidrs, tuple[Network, ...]] = Memo(_MEMO, _networks_size)
_judged: Memo[tuple[str | None, _Cidrs], bool] = Memo(_MEMO, _judged_size)


def _within(address: str | None, cidrs: _Cidrs) -> bool:
    pair = (address, cidrs)
    found = _judged.get(pair)
    if found is None:
        found = _judged.revive(pair)
    if found is None:
        found = _lies_in(address, cidrs)
        _judged.keep(pair, found)
    return found


def _lies_in(address: str | None, cidrs: _Cidrs) -> bool:
    try:
        client = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
        client = client.ipv4_mapped
    return any(client in network for network in _networks(cidrs))


def _networks(cidrs: _Cidrs) -> tuple[Network, ...]:
    networks = _networks_of.get(cidrs) or _networks_of.revive(cidrs)
    if networks is None:
        networks = tuple(network for network in map(_network, cidrs) if network)
        _networks_of.keep(cidrs, networks)
    return networks


def _network(cidr: str) -> Network | None:
    # A network that can't be read matches nobody: the list stays a restriction.
    try:
        return ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        return None
