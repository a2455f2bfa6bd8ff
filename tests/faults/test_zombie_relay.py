"""A relay that was stopped in its work and wakes up after another has taken over: what it still holds reaches no reader.

Commands come all the time.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load
from tests.faults.receipt import receipt
from tests.faults.scenario import Scenario
from tests.faults.states import assert_states_are_whole, states_in_kafka
from tests.faults.twin import Twin, readiness, second_edge, settings_of, url_of
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

ROUNDS = 6


class Relays:
    """The stack's keys worker and a second one, of which one leads."""

    def __init__(self, stack: LocalStack, twin: Twin) -> None:
        self._stack = stack
        self._twin = twin

    def leads(self, which: int) -> bool:
        """Whether the stack's own (0) or the second (1) says that it leads."""
        checks = self._twin.checks() if which else readiness(self._own_port())["checks"]
        return str(checks["relay"]["detail"]).startswith("leading")

    def leader(self) -> int:
        return eventually_sync(lambda: [which for which in (0, 1) if self.leads(which)], 60)[0]

    @contextmanager
    def stopped(self, which: int, after: float) -> Iterator[None]:
        """Stopped with a transaction in its hands: begun, and not all of it sent, since Kafka hangs for `after` seconds."""
        self._stack.pause("kafka")
        try:
            time.sleep(after)
            self._signal(which, signal.SIGSTOP)
        finally:
            self._stack.resume("kafka")
        try:
            yield
        finally:
            self._signal(which, signal.SIGCONT)

    def _signal(self, which: int, number: signal.Signals) -> None:
        if which:
            self._twin.send(number)
        else:
            self._stack.kill("keys-worker", number)

    def _own_port(self) -> str:
        return settings_of(self._stack.process("keys-worker")["pid"])["KEYLEDGER_INTERNAL_PORT"]


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_zombie_relay(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    random, refused = scenario.random(), list[dict[str, Any]]()
    with Twin(stack, "keys-worker", tmp_path / "relay.log") as twin, _busy(owner):
        twin.start()
        twin.wait_ready()
        relays = Relays(stack, twin)
        for _ in range(ROUNDS):
            key = owner.create_key("to be refused", limits=UNLIMITED)
            leader = relays.leader()
            with relays.stopped(leader, random.uniform(0.1, 0.6)):
                eventually_sync(lambda leader=leader: relays.leads(1 - leader), 60)
                eventually_sync(lambda key=key: _refused(owner, key), 60)
            scenario.faults += 1
            refused.append(key)
            eventually_sync(lambda leader=leader: not relays.leads(leader), 60)
            _assert_refused(owner.url, refused)
    with second_edge(stack, tmp_path) as cold:
        cold.start()
        cold.wait_ready()
        _assert_refused(url_of(cold), refused)
    backwards = {name: versions for name, versions in states_in_kafka(stack).items() if versions != sorted(versions)}
    assert backwards == {}, "an old state came after a newer one"
    eventually_sync(lambda: assert_states_are_whole(stack) is None, 30)
    scenario.account(owner, loads, faults=ROUNDS, answers=500)


def _refused(owner: Client, key: dict[str, Any]) -> bool:
    """Whether a change that refuses the key is confirmed by the edge."""
    found = receipt(owner.send("PUT", f"/api/v1/api-keys/{key['id']}", json={"is_active": False}))
    return found.edges == found.confirmed == 1


def _assert_refused(url: str, keys: list[dict[str, Any]]) -> None:
    for key in keys:
        with Client(url, key["key"]) as client:
            assert client.get("/echo/refused").status_code == 403


@contextmanager
def _busy(owner: Client) -> Iterator[None]:
    """Changes to a few keys, one after the other without a pause, so that the relay always has something in its hands."""
    over = threading.Event()
    keys = [owner.create_key(f"busy {number}") for number in range(3)]

    def change(key: dict[str, Any]) -> None:
        number = 0
        while not over.is_set():
            number += 1
            owner.send("PUT", f"/api/v1/api-keys/{key['id']}", json={"name": f"busy {number}"})

    changing = [threading.Thread(target=change, args=(key,)) for key in keys]
    for thread in changing:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in changing:
            thread.join()
