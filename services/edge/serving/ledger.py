"""The ledger: each metered answer gets its record into the request log before its first byte leaves. What one turn of
the event loop settles is written with one write; only then are its answers let go.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from services.edge.clock import MICROSECOND, MILLISECOND, SECOND, boot_ns
from services.edge.domain import Outcome
from services.edge.domain import decision as decision_of
from services.edge.requestlog.writer import LogFailed, Note, Record, RequestLog
from services.edge.serving.metrics import Metrics
from services.edge.serving.passage import Passage

# A killed process forgets no admission older than this: an open one is noted then.
NOTE_AFTER_NS: Final = 50 * MILLISECOND
# In microseconds.
_A_SECOND: Final = 1_000_000
_REOPEN_NS: Final = SECOND // 10
_TELL_AGAIN_NS: Final = 60 * SECOND
# A table is looked up faster than a rule is asked.
_DECISIONS: Final = {outcome: decision_of(outcome) for outcome in Outcome}
_log = structlog.get_logger()

Release = Callable[[bool], None]


class Ledger:
    """Writes records and lets their answers go. `open_log` begins a new request log, and may raise `LogFailed`."""

    def __init__(self, open_log: Callable[[], RequestLog], metrics: Metrics, *, client_addresses: bool = True) -> None:
        self._open_log = open_log
        self._metrics = metrics
        self._client_addresses = client_addresses
        self._log: RequestLog | None = None
        self._retry_ns = 0
        self._told = ""
        self._tell_again_ns = 0
        self._pending: list[tuple[Passage, int, int, Release | None]] = []
        self._notes: list[Note] = []
        self._carried: tuple[Record | Note, ...] = ()
        self._scheduled = False
        self._open: dict[Passage, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def log_id(self) -> str | None:
        """The id of the log that is written now."""
        return self._log.id if self._log else None

    def writable(self) -> bool:
        """Whether there is a log to write to; tries to begin one when there is none, but not each time."""
        if self._log is not None:
            return True
        return boot_ns() >= self._retry_ns and self._begin()

    def admitted(self, passage: Passage) -> None:
        """An admitted request is under way: if it takes long it is noted, so that a killed process's limits know it."""
        self._open[passage] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTE_AFTER_NS / SECOND, self._note)

    def settle(self, passage: Passage, status: int, now_ns: int, release: Release | None) -> None:
        """Records the answer of `status` whose head is ready at `now_ns` (boot clock).

        `release` is called once: with True when the record is written and the answer may go, with False when it can't
        be written and the answer must not be given. None: nobody is there any more to answer.
        """
        self._open.pop(passage, None)
        self._pending.append((passage, status, now_ns, release))
        if not self._scheduled:
            self._schedule()

    def revise(self, passage: Passage, status: int) -> None:
        """An answer that was settled and not let go yet has become another, of `status`; it keeps its place and time."""
        for index, (settled, _, now_ns, release) in enumerate(self._pending):
            if settled is passage:
                self._pending[index] = passage, status, now_ns, release

    def note_all(self) -> bool:
        """Notes every request that is open, however short: whoever reads the log from now on finds all that was admitted.

        False when that could not be written.
        """
        for passage in self._open:
            self._note_one(passage)
        self._open.clear()
        self._flush()
        return not self._carried

    def close(self) -> None:
        """Writes what is buffered, and ends the log."""
        if self._timer is not None:
            self._timer.cancel()
        self._flush()
        if self._log is not None:
            try:
                self._log.close()
            except LogFailed as failure:
                self._failed(failure)
            self._log = None

    def _record(self, passage: Passage, status: int, now_ns: int) -> Record:
        key, outcome = passage.key, passage.outcome
        if key is None or outcome is None:
            raise AssertionError("a request without a key has no record")
        route = passage.route.name if passage.route is not None else ""
        decision = _DECISIONS[outcome]
        seconds = (now_ns - passage.admitted_ns) // MICROSECOND / _A_SECOND
        self._metrics.answered(route, status, decision, seconds)
        # In the order of its fields: by name it would take four times as long.
        return Record(
            passage.admitted_ns,
            passage.time_ns,
            key.id,
            key.version,
            key.owner_id,
            passage.endpoint,
            route,
            passage.method,
            status,
            seconds,
            decision,
            "proxy",
            passage.request_id,
            passage.correlation_id,
            passage.address if self._client_addresses else None,
            passage.noted,
        )

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        pending, notes = self._pending, self._notes
        self._pending = []
        self._notes = []
        records = [self._record(passage, status, now_ns) for passage, status, now_ns, _ in pending]
        unwritten = self._write([*notes, *records] if notes else records)
        if unwritten:
            self._let_go_but(unwritten, records, [release for *_, release in pending])
            return
        _let_go([release for *_, release in pending], itertools.repeat(True))

    def _let_go_but(
        self, unwritten: Sequence[Record | Note], records: Sequence[Record], releases: Sequence[Release | None]
    ) -> None:
        """An answer that is not given has no record; what nobody waits for goes into the next log."""
        answered = {id(record) for record, release in zip(records, releases, strict=True) if release is not None}
        self._carried += tuple(item for item in unwritten if id(item) not in answered)
        refused = {id(item) for item in unwritten}
        _let_go(releases, [id(record) not in refused for record in records])

    def _write(self, items: Sequence[Record | Note]) -> Sequence[Record | Note]:
        """Writes `items` with one write, if need be to a new log; what can't be written is returned."""
        if not self.writable() or self._log is None:
            return items
        try:
            self._log.adopt(items)
            self._log.flush()
        except LogFailed as failure:
            return self._start_over(failure)
        return ()

    def _start_over(self, failure: LogFailed) -> Sequence[Record | Note]:
        self._failed(failure)
        if not self._begin() or self._log is None:
            return failure.unwritten
        try:
            self._log.adopt(failure.unwritten)
            self._log.flush()
        except LogFailed as again:
            self._failed(again)
            return again.unwritten
        return ()

    def _begin(self) -> bool:
        try:
            self._log = self._open_log()
        except LogFailed as failure:
            self._failed(failure)
            return False
        carried, self._carried = self._carried, ()
        self._log.adopt(carried)
        self._schedule()
        return True

    def _failed(self, failure: LogFailed) -> None:
        self._log = None
        self._retry_ns = boot_ns() + _REOPEN_NS
        self._metrics.log_failures += 1
        # A full disk says so ten times a second, and may be the one that this is written to.
        if str(failure) != self._told or boot_ns() >= self._tell_again_ns:
            self._told, self._tell_again_ns = str(failure), boot_ns() + _TELL_AGAIN_NS
            _log.error("the request log failed", reason=self._told, unwritten=len(failure.unwritten))

    def _note(self) -> None:
        """Notes the requests that are open for long, and comes again when the next is."""
        self._timer = None
        due = boot_ns() - NOTE_AFTER_NS
        for passage in list(self._open):
            if passage.admitted_ns > due:
                wait = max(passage.admitted_ns - due, MILLISECOND) / SECOND
                self._timer = asyncio.get_running_loop().call_later(wait, self._note)
                return
            del self._open[passage]
            self._note_one(passage)

    def _note_one(self, passage: Passage) -> None:
        if passage.key is None:
            return
        passage.noted = True
        self._notes.append(Note(passage.key.id, passage.admitted_ns))
        self._schedule()


def _let_go(releases: Iterable[Release | None], recorded: Iterable[bool]) -> None:
    for release, is_recorded in zip(releases, recorded):  # noqa: B905 - the one may go on for ever
        if release is None:
            continue
        try:
            release(is_recorded)
        except Exception:
            # The others of this turn still wait for theirs.
            _log.exception("an answer could not be given")
