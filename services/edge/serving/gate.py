"""The gate: what is to become of a request, before anything is done about it. Finds the route, knows the key, judges,
counts against the limits; all in memory and the replica, without waiting for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Final

from services.edge.clock import MILLISECOND, SECOND
from services.edge.domain import Outcome, decide, metered, valid_until_ns
from services.edge.http import paths
from services.edge.http.fields import request_kinds
from services.edge.http.message import BadMessage, RequestHead
from services.edge.limiter import NEVER, Limiter
from services.edge.memo import Memo, by_length
from services.edge.replica.reader import ReplicaReader, ReplicaStatus, ReplicaUnreadableError
from services.edge.routes import Table
from services.edge.serving import answers
from services.edge.serving.documents import Document
from services.edge.serving.grant import Grant, Place
from services.edge.serving.passage import Passage
from services.edge.serving.refusals import Refusals
from services.edge.settings import EdgeSettings
from shared.ids import hash_secret, well_formed

_ENDPOINT_MAX: Final = 512
_STATUS_NS: Final = MILLISECOND
_CORRELATION_MAX: Final = 128
_VISIBLE: Final = bytes(range(0x21, 0x7F))
_ALLOWED: Final = Outcome.allowed
# Of paths, in bytes, each with what a dict needs for it.
_MEMO = 512 * 1024
_ENTRY = 400


class Gate:
    """Judges requests. `writable` says whether a record could be written now."""

    def __init__(
        self,
        settings: EdgeSettings,
        table: Table,
        replica: ReplicaReader,
        limiter: Limiter,
        public: Mapping[str, Document],
        writable: Callable[[], bool],
    ) -> None:
        self._table = table
        self._replica = replica
        self._limiter = limiter
        self._writable = writable
        self._documents = public
        self._places: Memo[bytes, Place] = Memo(_MEMO, by_length(_ENTRY))
        self._stale_ns = int(settings.stale_seconds * SECOND)
        self._refuse_ns = int(settings.strict_seconds * SECOND) if settings.mode == "strict" else NEVER
        self._refusals = Refusals()
        self._open_max = settings.open_requests
        self._open: dict[int, int] = {}
        self._status = replica.status()
        self._status_ns = 0
        self.new_id = _ids().__next__
        """A fresh request id: 32 hex digits."""

    def ready(self, boot_ns: int) -> bool:
        """Whether keys can be judged: the replica is there and, in strict mode, fresh enough."""
        status = self._replica_status(boot_ns)
        return status.ready and boot_ns - status.fresh_ns <= self._refuse_ns

    def sweep(self, wall_ns: int) -> None:
        """What is due now and then."""
        self._refusals.sweep(wall_ns)

    def close(self) -> None:
        """Tells what was not told yet."""
        self._refusals.tell()

    def judge(
        self, request: RequestHead, address: str | None, boot_ns: int, wall_ns: int, held: Grant | None = None
    ) -> Passage:
        """What becomes of a request; raises BadMessage when its target can't be trusted to mean one path.

        `held` is what an earlier request from the same connection found (`Passage.grant`).
        """
        target, method = request.target, request.method
        place = self._places.get(target.partition(b"?")[0])
        if place is None or b"#" in target:
            place = self._place(target)
        document, route = place.document, place.route
        correlation = _correlation(request.request_ids) if request.request_ids else None
        passage = Passage(self.new_id(), correlation, address, method, place.endpoint, boot_ns, wall_ns, route)
        if document is not None:
            passage.reason = "public"
            passage.answer = document.answer(method, request.fields)
        elif route is not None and route.public:
            passage.reason = "public"
        else:
            grant = self._authenticate(passage, request.keys, held)
            if grant is not None:
                self._admit(passage, grant)
        return passage

    def _place(self, target: bytes) -> Place:
        sent = target.partition(b"?")[0]
        path, meant = paths.split(target)
        document, route = self._documents.get(meant), None
        if document is None:
            try:
                route = self._table.match(meant)
            except LookupError:
                raise BadMessage("The path is ambiguous") from None
        place = Place(path[:_ENDPOINT_MAX], document, route)
        if self._places.passing > 0:
            self._places.passing -= 1
        else:
            self._places.notice(sent, place)
        return place

    def refused_now(self, passage: Passage, wall_ns: int) -> Outcome | None:
        """How the key of a request under way would be refused by now, but for the limits; None when it would not be."""
        if passage.key is None or passage.route is None:
            return None
        try:
            found = self._replica.lookup(passage.key_hash)
        except ReplicaUnreadableError:
            return None
        key, owner = found if found else (None, None)
        permission = passage.route.permission(passage.method)
        address, key_hash = passage.address, passage.key_hash
        outcome = decide(key, owner, key_hash, wall_ns=wall_ns, address=address, permission=permission)
        return None if outcome in {Outcome.allowed, Outcome.not_ready} else outcome

    @property
    def under_way(self) -> Mapping[int, int]:
        """How many admitted requests are under way, by their key's id."""
        return self._open

    def ended(self, passage: Passage) -> None:
        """A request is no longer under way."""
        key = passage.key
        if key is not None and passage.outcome is _ALLOWED:
            left = self._open[key.id] - 1
            if left:
                self._open[key.id] = left
            else:
                del self._open[key.id]

    def _authenticate(self, passage: Passage, keys: list[bytes], held: Grant | None) -> Grant | None:
        """That the key may, but for the limits; None: the passage says why not."""
        presented = keys[0] if len(keys) == 1 else b""
        known = held is not None and held.secret == presented
        if not known and not well_formed(presented.decode("latin-1")):
            return self._refuse(passage, Outcome.malformed if keys else Outcome.missing)
        now_ns = passage.admitted_ns
        status = self._status if now_ns - self._status_ns <= _STATUS_NS else self._replica_status(now_ns)
        age_ns = now_ns - status.fresh_ns
        if not status.ready or age_ns > self._refuse_ns or not self._writable():
            return self._refuse(passage, Outcome.not_ready)
        if (
            known
            and held is not None
            and held.moment == self._replica.moment
            and held.route is passage.route
            and held.method == passage.method
            and passage.time_ns < held.until_ns
        ):
            return held
        return self._look_up(passage, presented, stale=age_ns > self._stale_ns)

    def _look_up(self, passage: Passage, presented: bytes, *, stale: bool) -> Grant | None:
        route, method = passage.route, passage.method
        key_hash = passage.key_hash = hash_secret(presented.decode("latin-1"))
        # As of before it is looked up: what is written meanwhile is found out the next time.
        moment = self._replica.moment
        try:
            found = self._replica.lookup(key_hash)
        except ReplicaUnreadableError:
            return self._refuse(passage, Outcome.not_ready)
        key, owner = found or (None, None)
        passage.key = key
        outcome = decide(
            key,
            owner,
            key_hash,
            wall_ns=passage.time_ns,
            address=passage.address,
            permission=route.permission(method) if route else None,
            stale=stale,
        )
        if outcome is not _ALLOWED or key is None:
            return self._refuse(passage, outcome)
        answer = None
        if route is None:
            answer = answers.NOT_FOUND
        elif not route.allows(method):
            answer = answers.method_not_allowed(route.allowed())
        return Grant(presented, route, method, moment, valid_until_ns(key, key_hash), key, key_hash, answer)

    def _replica_status(self, now_ns: int) -> ReplicaStatus:
        if now_ns - self._status_ns > _STATUS_NS:
            self._status = self._replica.status()
            self._status_ns = now_ns
        return self._status

    def _admit(self, passage: Passage, grant: Grant) -> None:
        key, now_ns = grant.key, passage.admitted_ns
        passage.key, passage.key_hash, passage.grant = key, grant.key_hash, grant
        under_way = self._open.get(key.id, 0)
        if under_way >= self._open_max:
            verdict = passage.verdict = self._limiter.peek(key.id, key.limits, now_ns)
            self._refuse(passage, Outcome.too_many_open if verdict.allowed else Outcome.rate_limited)
            return
        verdict = passage.verdict = self._limiter.admit(key.id, key.limits, now_ns)
        if not verdict.allowed:
            self._refuse(passage, Outcome.rate_limited)
            return
        self._open[key.id] = under_way + 1
        passage.outcome = _ALLOWED
        passage.metered = True
        passage.answer = grant.answer
        if request_kinds.new:
            request_kinds.learn()

    def _refuse(self, passage: Passage, outcome: Outcome) -> None:
        """Says in the passage that it is refused. None, which stands for that."""
        passage.outcome = outcome
        passage.reason = outcome.value
        answer = passage.answer = answers.REFUSALS[outcome]
        key = passage.key
        if key is None or not metered(outcome):
            passage.key = None
            return
        if answer.status == 403:
            passage.verdict = self._limiter.peek(key.id, key.limits, passage.admitted_ns)
        passage.metered = passage_has_row = self._refusals.take(key.id, passage.admitted_ns, passage.time_ns)
        passage.close = not passage_has_row


def _ids() -> Iterator[str]:
    # They need to be unique, not secret.
    random = Random()  # noqa: S311
    while True:
        digits = random.randbytes(16 * 256).hex()
        for start in range(0, len(digits), 32):
            yield digits[start : start + 32]


def _correlation(request_ids: list[bytes]) -> str | None:
    request_id = request_ids[0]
    if len(request_ids) != 1 or not 0 < len(request_id) <= _CORRELATION_MAX or request_id.translate(None, _VISIBLE):
        return None
    return request_id.decode()
