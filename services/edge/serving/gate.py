"""The gate: what is to become of a request, before anything is done about it. Finds the route, knows the key, judges,
counts against the limits; all in memory and the replica, without waiting for anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random

from services.edge.clock import MILLISECOND, SECOND
from services.edge.domain import KeyState, Outcome, decide, metered
from services.edge.http import paths
from services.edge.http.fields import request_kinds
from services.edge.http.head import BadMessage, RequestHead
from services.edge.limiter import NEVER, Limiter
from services.edge.replica.reader import ReplicaReader, ReplicaStatus, ReplicaUnreadableError
from services.edge.routes import Table
from services.edge.serving import answers
from services.edge.serving.documents import Document
from services.edge.serving.passage import Passage
from services.edge.serving.refusals import Refusals
from services.edge.settings import EdgeSettings
from shared.ids import hash_secret, well_formed

_ENDPOINT_MAX = 512
_STATUS_NS = MILLISECOND
_CORRELATION = re.compile(rb"[\x21-\x7e]{1,128}")
_ALLOWED = Outcome.allowed


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
        self._stale_ns = int(settings.stale_seconds * SECOND)
        self._refuse_ns = int(settings.strict_seconds * SECOND) if settings.mode == "strict" else NEVER
        self._refusals = Refusals()
        self._open_max = settings.open_requests
        self._open: dict[int, int] = {}
        self._status = replica.status()
        self._status_ns = 0
        # Ids need to be unique, not secret.
        self._random = Random()  # noqa: S311

    def new_id(self) -> str:
        """A fresh request id: 32 hex digits."""
        return self._random.getrandbits(128).to_bytes(16, "big").hex()

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

    def judge(self, request: RequestHead, address: str | None, boot_ns: int, wall_ns: int) -> Passage:
        """What becomes of a request; raises BadMessage when its target can't be trusted to mean one path."""
        path, meant = paths.split(request.target)
        correlation = _correlation(request.request_ids)
        passage = Passage(self.new_id(), correlation, address, request.method, path[:_ENDPOINT_MAX], boot_ns, wall_ns)
        document = self._documents.get(meant)
        if document is not None:
            passage.reason = "public"
            passage.answer = document.answer(request.method, request.fields)
            return passage
        try:
            route = passage.route = self._table.match(meant)
        except LookupError:
            raise BadMessage("The path is ambiguous") from None
        if route is not None and route.public:
            passage.reason = "public"
            return passage
        self._authenticate(passage, request.keys)
        return passage

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

    def _authenticate(self, passage: Passage, keys: list[bytes]) -> None:
        secret = keys[0].decode("latin-1") if len(keys) == 1 else ""
        if not well_formed(secret):
            return self._refuse(passage, Outcome.malformed if keys else Outcome.missing)
        status = self._replica_status(passage.admitted_ns)
        age_ns = passage.admitted_ns - status.fresh_ns
        if not status.ready or age_ns > self._refuse_ns or not self._writable():
            return self._refuse(passage, Outcome.not_ready)
        passage.key_hash = hash_secret(secret)
        try:
            found = self._replica.lookup(passage.key_hash)
        except ReplicaUnreadableError:
            return self._refuse(passage, Outcome.not_ready)
        passage.key, owner = found if found else (None, None)
        permission = passage.route.permission(passage.method) if passage.route else None
        outcome = decide(
            passage.key,
            owner,
            passage.key_hash,
            wall_ns=passage.time_ns,
            address=passage.address,
            permission=permission,
            stale=age_ns > self._stale_ns,
        )
        if outcome is _ALLOWED and passage.key is not None:
            return self._admit(passage, passage.key)
        return self._refuse(passage, outcome)

    def _replica_status(self, now_ns: int) -> ReplicaStatus:
        if now_ns - self._status_ns > _STATUS_NS:
            self._status = self._replica.status()
            self._status_ns = now_ns
        return self._status

    def _admit(self, passage: Passage, key: KeyState) -> None:
        under_way = self._open.get(key.id, 0)
        if under_way >= self._open_max:
            verdict = passage.verdict = self._limiter.peek(key.id, key.limits, passage.admitted_ns)
            return self._refuse(passage, Outcome.too_many_open if verdict.allowed else Outcome.rate_limited)
        verdict = passage.verdict = self._limiter.admit(key.id, key.limits, passage.admitted_ns)
        if not verdict.allowed:
            return self._refuse(passage, Outcome.rate_limited)
        self._open[key.id] = under_way + 1
        passage.outcome = _ALLOWED
        passage.metered = True
        if request_kinds.new:
            request_kinds.learn()
        route = passage.route
        if route is None:
            passage.answer = answers.NOT_FOUND
        elif not route.allows(passage.method):
            passage.answer = answers.method_not_allowed(route.allowed())
        return None

    def _refuse(self, passage: Passage, outcome: Outcome) -> None:
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


def _correlation(request_ids: list[bytes]) -> str | None:
    if len(request_ids) != 1 or _CORRELATION.fullmatch(request_ids[0]) is None:
        return None
    return request_ids[0].decode()
