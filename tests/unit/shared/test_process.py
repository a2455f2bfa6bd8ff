"""How the parts of a process run side by side, and how it ends: what is said of it, in which order, after which time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from shared.process import Apart, until_signalled
from shared.settings import PartitionsChanged
from shared.telemetry import Check, internal_server
from tests.support.eventually import eventually
from tests.support.service import free_port

pytestmark = pytest.mark.anyio


async def ready(port: int) -> dict[str, Any]:
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).json()


async def test_readiness_goes_off_first_then_the_parts_are_told() -> None:
    port, seen = free_port(), []

    async def part(stop: asyncio.Event) -> None:
        assert (await ready(port))["ready"] is True
        os.kill(os.getpid(), signal.SIGTERM)
        while (await ready(port))["ready"]:
            pass
        seen.append(stop.is_set())
        await stop.wait()
        seen.append((await ready(port))["checks"]["ending"]["detail"])

    await until_signalled(("127.0.0.1", port), {"own": lambda: Check(True)}, part, leave=0.5, patience=9)
    assert seen == [False, "told to end, within 9.5 s"]


async def test_a_part_has_the_patience_that_is_asked_for() -> None:
    async def slow(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        await asyncio.sleep(0.2)

    await until_signalled(("127.0.0.1", 0), {}, slow, patience=10)
    with pytest.raises(TimeoutError):
        await until_signalled(("127.0.0.1", 0), {}, slow, patience=0.05)


async def test_a_part_that_fails_ends_the_process() -> None:
    async def fails(stop: asyncio.Event) -> None:
        raise ValueError("why")

    async def other(stop: asyncio.Event) -> None:
        await stop.wait()

    with pytest.raises(ValueError, match="why"):
        await until_signalled(("127.0.0.1", 0), {}, other, fails, leave=60)


async def test_who_still_asks_is_let_go_without_an_error() -> None:
    before = asyncio.all_tasks()
    async with internal_server("127.0.0.1", 0, {}) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez")
        await eventually(lambda: asyncio.all_tasks() - before)
    # What is left of them is cancelled with the loop, which tells of each with a traceback.
    assert asyncio.all_tasks() - before == set()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_part_that_fails_is_shown_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.process._PAUSE", (0.05, 0.1))
    stop, started = asyncio.Event(), 0

    async def part(stop: asyncio.Event) -> None:
        nonlocal started
        started += 1
        if started < 4:
            raise RecursionError("too deep")
        await stop.wait()

    apart = Apart(part, {"part": lambda: Check(True, "well")})
    running = asyncio.ensure_future(apart.run(stop))
    check = apart.checks()["part"]
    await eventually(lambda: check() == Check(False, "failed: RecursionError: too deep"))
    await eventually(lambda: check() == Check(True, "well") and started == 4)
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_what_no_restart_will_mend_is_passed_on() -> None:
    async def part(_: asyncio.Event) -> None:
        raise PartitionsChanged("8 partitions, not 6")

    with pytest.raises(PartitionsChanged):
        await Apart(part, {}).run(asyncio.Event())


def test_the_collector_comes_rarely_and_its_pauses_are_told() -> None:
    program = (
        "import gc, sys; from prometheus_client import generate_latest; from shared.process import spare_collector\n"
        "spare_collector(); spare_collector(); kept = gc.get_freeze_count(), *gc.get_threshold()[:1]\n"
        "for _ in range(3): gc.collect()\n"
        "sys.stdout.write(generate_latest().decode() + f'kept {kept[0] > 1000} {kept[1] >= 50_000}')"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert told.endswith("kept True True")
    # Each call collects too, but is heard of once.
    assert 'keyledger_gc_pause_seconds_bucket{le="+Inf"} 5.0\n' in told
    assert float(told.partition("keyledger_gc_pause_seconds_sum ")[2].split()[0]) > 0
