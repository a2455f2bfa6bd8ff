"""No answer leaves before its record is written; what can't be recorded is not answered; nothing is recorded twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from services.edge.clock import boot_ns
from services.edge.domain import KeyState, Outcome
from services.edge.requestlog.writer import LogFailed, Note, Record, RequestLog
from services.edge.serving.ledger import Ledger
from services.edge.serving.metrics import Metrics
from services.edge.serving.passage import Passage
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

KEY = KeyState(7, 3, epoch=1, version=2, status="active")


class Log:
    """A log whose next write takes `takes` entries and then fails; None: it takes all."""

    def __init__(self, takes: int | None = None) -> None:
        self.id = "log"
        self.takes = takes
        self.written: list[Record | Note] = []
        self.writes = 0
        self._buffer: list[Record | Note] = []

    def adopt(self, items: list[Record | Note]) -> None:
        self._buffer += items

    def flush(self) -> None:
        if self.takes is None:
            self.writes += bool(self._buffer)
            self.written += self._buffer
            self._buffer = []
            return
        self.written += self._buffer[: self.takes]
        raise LogFailed("full", self._buffer[self.takes :])

    def close(self) -> None:
        self.flush()

    def ids(self) -> list[str]:
        return [item.request_id for item in self.written if isinstance(item, Record)]


class Logs:
    """What `open_log` gives, in turn; None: it fails."""

    def __init__(self, *logs: Log | None) -> None:
        self._logs = list(logs)

    def __call__(self) -> RequestLog:
        log = self._logs.pop(0) if self._logs else None
        if log is None:
            raise LogFailed("no space", ())
        return cast("RequestLog", log)


def passage(name: str) -> Passage:
    return Passage(name, None, "127.0.0.1", "GET", "/a", boot_ns(), 0, key=KEY, outcome=Outcome.allowed, metered=True)


def answers(into: dict[str, bool], name: str) -> Callable[[bool], None]:
    def release(recorded: bool) -> None:
        assert name not in into
        into[name] = recorded

    return release


async def settled(ledger: Ledger, *names: str) -> dict[str, bool]:
    released: dict[str, bool] = {}
    for name in names:
        ledger.settle(passage(name), 200, boot_ns(), answers(released, name))
        assert not released
    await eventually(lambda: len(released) == len(names))
    return released


async def test_what_one_turn_settles_is_one_write() -> None:
    log = Log()
    ledger = Ledger(Logs(log), Metrics())
    assert await settled(ledger, "a", "b", "c") == {"a": True, "b": True, "c": True}
    assert (log.ids(), log.writes) == (["a", "b", "c"], 1)


async def test_a_failed_log_is_followed_by_another_and_nothing_is_counted_twice() -> None:
    first, second = Log(takes=1), Log()
    metrics = Metrics()
    assert await settled(Ledger(Logs(first, second), metrics), "a", "b", "c") == {"a": True, "b": True, "c": True}
    assert (first.ids(), second.ids()) == (["a"], ["b", "c"])
    assert metrics.log_failures == 1


async def test_without_a_log_what_is_not_recorded_is_not_answered() -> None:
    first = Log(takes=1)
    ledger = Ledger(Logs(first), Metrics())
    assert await settled(ledger, "a", "b") == {"a": True, "b": False}
    assert not ledger.writable()


async def test_a_second_failure_in_the_middle() -> None:
    first, second = Log(takes=1), Log(takes=1)
    assert await settled(Ledger(Logs(first, second), Metrics()), "a", "b", "c") == {"a": True, "b": True, "c": False}
    assert (first.ids(), second.ids()) == (["a"], ["b"])


async def test_what_nobody_waits_for_goes_into_the_next_log() -> None:
    first, third = Log(takes=0), Log()
    ledger = Ledger(Logs(first, None, third), Metrics())
    ledger.settle(passage("gone"), 499, boot_ns(), None)
    assert await settled(ledger, "a") == {"a": False}
    await eventually(ledger.writable)
    assert await settled(ledger, "b") == {"b": True}
    assert third.ids() == ["gone", "b"]


async def test_a_request_that_takes_long_is_noted_once() -> None:
    log = Log()
    ledger = Ledger(Logs(log), Metrics())
    slow, quick = passage("slow"), passage("quick")
    ledger.admitted(slow)
    ledger.admitted(quick)
    ledger.settle(quick, 200, boot_ns(), None)
    await eventually(lambda: slow.noted and any(isinstance(item, Note) for item in log.written))
    ledger.settle(slow, 200, boot_ns(), None)
    await eventually(lambda: log.ids() == ["quick", "slow"])
    notes = [item for item in log.written if isinstance(item, Note)]
    assert notes == [Note(7, slow.admitted_ns)]
    assert [item.noted for item in log.written if isinstance(item, Record)] == [False, True]


async def test_a_note_that_was_lost_with_its_log_is_in_the_next() -> None:
    first, second = Log(takes=0), Log()
    metrics = Metrics()
    ledger = Ledger(Logs(first, None, second), metrics)
    slow = passage("slow")
    ledger.admitted(slow)
    await eventually(lambda: slow.noted and metrics.log_failures)
    await eventually(ledger.writable)
    ledger.settle(slow, 200, boot_ns(), None)
    await eventually(lambda: len(second.written) == 2)
    assert isinstance(second.written[0], Note)


async def test_an_answer_that_fails_keeps_no_other_from_leaving() -> None:
    ledger = Ledger(Logs(Log()), Metrics())
    released: dict[str, bool] = {}

    def fails(_recorded: bool) -> None:
        raise ValueError("odd")

    ledger.settle(passage("a"), 200, boot_ns(), answers(released, "a"))
    ledger.settle(passage("b"), 200, boot_ns(), fails)
    ledger.settle(passage("c"), 200, boot_ns(), answers(released, "c"))
    await eventually(lambda: released == {"a": True, "c": True})


async def test_closing_writes_what_is_buffered() -> None:
    log = Log()
    ledger = Ledger(Logs(log), Metrics())
    ledger.settle(passage("a"), 499, boot_ns(), None)
    ledger.close()
    assert log.ids() == ["a"]
