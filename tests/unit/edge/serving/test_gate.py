"""What an earlier request on the same connection found out of its key changes nothing of how the next is judged."""

from __future__ import annotations

from random import Random
from typing import cast

from services.edge.clock import MILLISECOND, SECOND
from services.edge.domain import KeyState, Limits, Outcome, OwnerState
from services.edge.http.head import parse_request
from services.edge.http.message import RequestHead
from services.edge.limiter import Limiter
from services.edge.replica.reader import ReplicaReader, ReplicaStatus
from services.edge.routes import Route, Table
from services.edge.serving.gate import Gate
from services.edge.serving.grant import Grant
from services.edge.serving.passage import Passage
from services.edge.settings import EdgeSettings
from shared.ids import new_secret
from tests.unit.edge.serving.stage import ask

BOOT, WALL = 1000 * SECOND, 1_800_000_000 * SECOND
SECRETS = [new_secret("test"), new_secret("test")]
ROUTES = [
    Route("a", "/a", "http://a", "route:a", {"GET": "read", "POST": "write"}),
    Route("b", "/b", "http://b", "route:b"),
    Route("open", "/open", "http://b", "route:open", public=True),
]


class Replica:
    """Keys and owners as they are set; `moment` says as of when, like the real one: found out by `status`."""

    def __init__(self) -> None:
        self.held: dict[bytes, tuple[KeyState, OwnerState | None]] = {}
        self.fresh_ns = BOOT
        self.moment = 0
        self.changes = 0

    def status(self) -> ReplicaStatus:
        self.moment = self.changes
        return ReplicaStatus(ready=True, fresh_ns=self.fresh_ns, complete=True, beats=())

    def lookup(self, key_hash: bytes) -> tuple[KeyState, OwnerState | None] | None:
        return self.held.get(key_hash)


def gate(replica: Replica) -> Gate:
    config = EdgeSettings.model_construct(mode="strict", open_requests=3)
    return Gate(config, Table(ROUTES), cast(ReplicaReader, replica), Limiter(), {}, lambda: True)


def judged(passage: Passage) -> tuple[object, ...]:
    """All that becomes of it but its id."""
    told = passage.outcome, passage.verdict, passage.answer, passage.metered, passage.close, passage.reason, passage.key
    return *told, passage.key_hash if passage.key else b"", passage.route


def some_request(random: Random) -> RequestHead:
    """Mostly one that can be granted."""
    path = random.choice(["/a/1", "/a/1", "/a/1?b=c", "/b", "/nothing", "/open/1"])
    secret = random.choices([SECRETS[0].text, SECRETS[1].text, "kl_test_nonsense", None], [20, 4, 1, 1])[0]
    data = ask(path, secret, random.choice(["GET", "GET", "HEAD", "POST", "DELETE"]))
    if random.random() < 0.02:
        data = data[:-2] + f"X-API-Key: {SECRETS[0].text}\r\n\r\n".encode()
    return parse_request(data)


def some_state(random: Random, number: int, wall_ns: int) -> tuple[KeyState, OwnerState | None]:
    """Mostly a good one."""
    ends = [None, None, wall_ns + SECOND, wall_ns + 5 * SECOND]
    state = KeyState(
        number + 1, 1, 1, 1, random.choices(["active", "inactive", "revoked", "odd"], [12, 1, 1, 1])[0],
        permissions=frozenset(random.choice([("read", "write"), ("read",), ("admin",), ()])),
        limits=random.choice([Limits(), Limits(4, 50, None), Limits(100, 1000, 10_000)]),
        expires_at_ns=random.choice(ends),
        addresses=random.choices([(), ("192.0.2.0/24",), ("10.0.0.0/8",)], [6, 3, 1])[0],
        hashes=((SECRETS[number].hash, random.choice(ends)),),
    )  # fmt: skip
    active = OwnerState(1, 1, 1, "active")
    return state, random.choices([active, OwnerState(1, 1, 1, "suspended"), None], [12, 1, 1])[0]


def test_a_kept_grant_changes_no_judgement() -> None:
    assert sum(played(Random(seed)) for seed in range(60)) > 500


def played(random: Random) -> int:
    """How many requests were granted by what one before had found out, and judged like by a gate that keeps nothing."""
    replica = Replica()
    kept, anew = gate(replica), gate(replica)
    grant: Grant | None = None
    boot_ns, wall_ns, used = BOOT, WALL, 0
    request = some_request(random)
    for _ in range(150):
        if random.random() < 0.15 or not replica.held:
            number = random.choices([0, 1], [3, 1])[0] if replica.held else 0
            replica.held[SECRETS[number].hash] = some_state(random, number, wall_ns)
            replica.changes += 1
            # What is written is noticed within a millisecond.
            boot_ns += 2 * MILLISECOND
        if random.random() < 0.1:
            step = random.choice([1, 2 * MILLISECOND, SECOND, 4 * SECOND, 70 * SECOND])
            boot_ns += step
            # The wall clock may be set.
            wall_ns += random.choice([step, step, -step])
        if random.random() < 0.5:
            replica.fresh_ns = boot_ns
        if random.random() < 0.4:
            request = some_request(random)
        one = kept.judge(request, "192.0.2.1", boot_ns, wall_ns, grant)
        other = anew.judge(request, "192.0.2.1", boot_ns, wall_ns)
        assert judged(one) == judged(other)
        used += one.grant is not None and one.grant is grant
        grant = one.grant
        for passage, each in ((one, kept), (other, anew)):
            each.ended(passage)
    return used


def test_a_revoked_key_is_refused_on_a_connection_that_it_came_by_before() -> None:
    replica = Replica()
    judge = gate(replica).judge
    request = parse_request(ask("/b", SECRETS[0].text))
    replica.held[SECRETS[0].hash] = (
        KeyState(1, 1, 1, 1, "active", hashes=((SECRETS[0].hash, None),)),
        OwnerState(1, 1, 1, "active"),
    )
    first = judge(request, None, BOOT, WALL)
    assert first.outcome is Outcome.allowed
    assert judge(request, None, BOOT, WALL, first.grant).grant is first.grant
    replica.held[SECRETS[0].hash] = KeyState(1, 1, 1, 2, "revoked", hashes=((SECRETS[0].hash, None),)), None
    replica.changes += 1
    later = judge(request, None, BOOT + 2 * MILLISECOND, WALL, first.grant)
    assert (later.outcome, later.grant) == (Outcome.revoked, None)
