"""An edge that was away while a key was refused elsewhere: the receipt doesn't wait for it, and it never serves that key
once it is back: not at all after a new start, and not later than a second after it can go on.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load, steady
from tests.faults.receipt import receipt
from tests.faults.scenario import Scenario, stretched
from tests.faults.twin import Twin, edge_id, second_edge, url_of
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

REFUSED = (401, 403)
SILENCE = 3.0
PROMPTLY = 1.0


def _deactivate(owner: Client, key: dict[str, Any]) -> httpx2.Response:
    return owner.send("PUT", f"/api/v1/api-keys/{key['id']}", json={"is_active": False})


def _delete(owner: Client, key: dict[str, Any]) -> httpx2.Response:
    return owner.send("DELETE", f"/api/v1/api-keys/{key['id']}")


@contextmanager
def _stopped(edge: Twin) -> Iterator[None]:
    """It is not heard of, keeps its memory, and goes on where it was."""
    edge.send(signal.SIGSTOP)
    try:
        yield
    finally:
        edge.send(signal.SIGCONT)


@contextmanager
def _ended(edge: Twin) -> Iterator[None]:
    edge.end(signal.SIGTERM)
    yield
    edge.start()


@contextmanager
def _killed(edge: Twin) -> Iterator[None]:
    edge.end(signal.SIGKILL)
    yield
    edge.start()


WAYS = (_stopped, _ended, _killed)
CHANGES: tuple[Callable[[Client, dict[str, Any]], httpx2.Response], ...] = (_deactivate, _delete)


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_stale_edge(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    with second_edge(stack, tmp_path) as edge:
        edge.start()
        edge.wait_ready()
        eventually_sync(lambda: receipt(_made(owner)[0])[:2] == (2, 2))
        there = Load(url_of(edge), owner.create_key("there", limits=UNLIMITED), ("/echo/a",))
        with steady([there]):
            rounds = [(way, change) for way in WAYS for change in CHANGES]
            scenario.random().shuffle(rounds)
            for way, change in rounds:
                _away_while_refused(owner, edge, way, change)
                scenario.faults += 1
            _back_without_kafka(stack, owner, edge)
            scenario.faults += 1
            stack.wait_ready(300)
            edge.wait_ready()
        scenario.account(owner, [*loads, there], faults=len(rounds) + 1, answers=500)


def _away_while_refused(
    owner: Client,
    edge: Twin,
    way: Callable[[Twin], Any],
    change: Callable[[Client, dict[str, Any]], httpx2.Response],
) -> None:
    keys = [_known(owner, edge) for _ in range(2)]
    name = edge_id(edge)
    with way(edge):
        away = time.monotonic()
        first = _timed(change, owner, keys[0])
        if way is _ended:
            assert first.edges == 1 and name in first.silent, "who said that it stopped is not waited for"
        eventually_sync(lambda: time.monotonic() - away > SILENCE)
        second = _timed(change, owner, keys[1])
        assert (second.edges, second.confirmed) == (1, 1), "who is silent for three seconds is not waited for"
        assert name in second.silent
    for key in keys:
        _assert_refused(edge, key, at_once=way is not _stopped)
    edge.wait_ready()


def _back_without_kafka(stack: LocalStack, owner: Client, edge: Twin) -> None:
    """A new start that can't reach Kafka serves what it held; with Kafka back it refuses within a second."""
    key = _known(owner, edge)
    edge.end(signal.SIGKILL)
    assert receipt(_deactivate(owner, key)).confirmed == 1
    stack.pause("kafka")
    try:
        edge.start()
        with Client(url_of(edge), key["key"]) as client:
            eventually_sync(lambda: client.get("/echo/alone").status_code == 200)
    finally:
        stack.resume("kafka")
    _assert_refused(edge, key, at_once=False)


def _made(owner: Client) -> tuple[httpx2.Response, dict[str, Any]]:
    answer = owner.send("POST", "/api/v1/api-keys", json={"name": "a key", "limits": UNLIMITED})
    return answer, answer.json()


def _known(owner: Client, edge: Twin) -> dict[str, Any]:
    """A key that the second edge serves: at once, if it has confirmed."""
    answer, key = _made(owner)
    confirmed = receipt(answer)[:2] == (2, 2)
    with Client(url_of(edge), key["key"]) as client:
        eventually_sync(lambda: client.get("/echo/known").status_code == 200, 0 if confirmed else 30)
    return key


def _timed(change: Callable[[Client, dict[str, Any]], httpx2.Response], owner: Client, key: dict[str, Any]) -> Any:
    started = time.monotonic()
    found = receipt(change(owner, key))
    assert time.monotonic() - started < stretched(2 * PROMPTLY), "a receipt is waited for at most a second"
    return found


def _assert_refused(edge: Twin, key: dict[str, Any], *, at_once: bool) -> None:
    """From now on the edge does not serve the key, but for a second unless `at_once`; and it does answer."""
    back, refused = time.monotonic(), 0
    with Client(url_of(edge), key["key"]) as client:
        while refused < 20:
            asked = time.monotonic()
            assert asked - back < 60, "it does not come back"
            try:
                answer = client.get("/echo/refused")
            except httpx2.HTTPError:
                continue
            refused += answer.status_code in REFUSED
            if answer.status_code == 200:
                assert not at_once and refused == 0, "it served a key that it knew to be refused"
                assert asked - back < stretched(PROMPTLY), (
                    f"it serves a refused key {asked - back:.2f} s after it came back"
                )
