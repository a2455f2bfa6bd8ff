"""A part that fails beside others that go on."""

from __future__ import annotations

import asyncio

import pytest

from shared.process import Apart
from shared.settings import PartitionsChanged
from shared.telemetry import Check
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio


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
