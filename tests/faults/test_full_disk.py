"""An edge whose disk is full to the last byte, while it runs, while it starts and while it catches up: it refuses what it
could not count, still learns who is refused, and goes on by itself when there is space again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.e2e.client import Client
from tests.e2e.load import UNLIMITED, Load, steady
from tests.faults.receipt import receipt
from tests.faults.scenario import Scenario
from tests.faults.twin import Twin, second_edge, url_of
from tests.support.disks import fill, free_bytes, small_disk
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack

DISK_BYTES = 48 * 1024 * 1024
Way = Callable[[LocalStack, Twin], None]


def _running(stack: LocalStack, edge: Twin) -> None:
    """Nothing else happens."""


def _killed(stack: LocalStack, edge: Twin) -> None:
    """It starts on the full disk."""
    edge.end(signal.SIGKILL)
    edge.start()


def _behind(stack: LocalStack, edge: Twin) -> None:
    """It starts on the full disk with what it could not ship, and catches up there."""
    stack.pause("kafka")
    try:
        edge.end(signal.SIGKILL)
        edge.start()
    finally:
        stack.resume("kafka")


@pytest.mark.usefixtures("without_containers")
@pytest.mark.timeout(1800)
def test_full_disk(stack: LocalStack, owner: Client, loads: list[Load], scenario: Scenario, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk, second_edge(stack, tmp_path, disk / "edge") as edge:
        edge.start()
        edge.wait_ready()
        eventually_sync(lambda: receipt(_made(owner))[:2] == (2, 2))
        there = [Load(url_of(edge), owner.create_key(f"{n}", limits=UNLIMITED), ("/echo/a",)) for n in range(3)]
        with steady(there):
            ways: list[Way] = [_running, _killed, _behind] * 2
            scenario.random().shuffle(ways)
            for way in ways:
                _full(stack, owner, edge, there, disk, way)
                scenario.faults += 1
            edge.wait_ready()
        scenario.account(owner, [*loads, *there], faults=len(ways), answers=500)


def _full(stack: LocalStack, owner: Client, edge: Twin, loads: list[Load], disk: Path, way: Way) -> None:
    served = [len(load.seen) for load in loads]
    eventually_sync(lambda: all(len(load.seen) > before + 20 for load, before in zip(loads, served, strict=True)), 120)
    refused = owner.create_key("to be refused", limits=UNLIMITED)
    ballast = fill(disk)
    assert free_bytes(disk) == 0
    failures = [load.failures for load in loads]
    way(stack, edge)
    eventually_sync(lambda: all(load.failures > before for load, before in zip(loads, failures, strict=True)), 120)
    answer = owner.send("PUT", f"/api/v1/api-keys/{refused['id']}", json={"is_active": False})
    assert answer.is_success
    if way is _running:
        assert receipt(answer)[:2] == (2, 2), "an edge with a full disk learns who is refused"
    ballast.unlink()
    edge.wait_ready()
    with Client(url_of(edge), refused["key"]) as client:
        eventually_sync(lambda: client.get("/echo/refused").status_code != 503, 30)
        assert client.get("/echo/refused").status_code == 403


def _made(owner: Client) -> httpx2.Response:
    return owner.send("POST", "/api/v1/api-keys", json={"name": "a key", "limits": UNLIMITED})
