"""The compacted topics are compacted to what is newest; who reads them from the start, or goes on in a hole, is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.events.topics import KEY_STATES, KEY_USAGE, USAGE_MARKS
from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load
from tests.faults.brokers import compact
from tests.faults.scenario import Scenario
from tests.faults.states import assert_states_are_whole
from tests.faults.twin import second_edge, url_of
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

READERS = ("edge-agent", "edge", "keys-worker", "usage-worker", "keys-api")
CHANGES = 20


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_compaction(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    expected = {}
    for status, last in ((403, {"is_active": False}), (200, {"name": "last"}), (401, None)):
        key = owner.create_key(f"to be {status}", limits=UNLIMITED)
        path = f"/api/v1/api-keys/{key['id']}"
        for number in range(CHANGES):
            assert owner.send("PUT", path, json={"name": f"{number}", "is_active": number % 2 == 1}).is_success
        assert (owner.send("PUT", path, json=last) if last else owner.send("DELETE", path)).is_success
        expected[key["key"]] = status
    eventually_sync(lambda: all(len(load.seen) > 50 for load in loads), 120)
    assert compact(stack, [KEY_STATES, USAGE_MARKS, KEY_USAGE]) > 3 * CHANGES
    scenario.faults += 1
    _assert_judged(owner.url, expected)
    with second_edge(stack, tmp_path) as cold:
        cold.start()
        cold.wait_ready()
        _assert_judged(url_of(cold), expected)
    for name in scenario.random().sample(READERS, len(READERS)):
        stack.wait_restarted(name, stack.kill_next(name, 0), 120)
        scenario.faults += 1
    stack.wait_ready(300)
    _assert_judged(owner.url, expected)
    assert_states_are_whole(stack)
    scenario.account(owner, loads, faults=1 + len(READERS), answers=300)


def _assert_judged(url: str, expected: dict[str, int]) -> None:
    """That the edge answers each secret with the status that is expected."""
    for secret, status in expected.items():
        with Client(url, secret) as client:
            assert client.get("/echo/judged").status_code == status
