"""From a response to the dashboard that shows it."""

from __future__ import annotations

import random
import time

from tests.e2e.load import UNLIMITED
from tests.load.refusal import Connection
from tests.load.report import Section, milliseconds
from tests.load.servers import PATH
from tests.load.stack import Bench
from tests.support.eventually import eventually_sync

_BETWEEN = 0.005


def measure(bench: Bench, *, times: int) -> Section:
    """One request at a time; the administrator looks at the owner's dashboard until its count rises."""
    caller = Connection(bench.stack.url, bench.owner.create_key("shown", limits=UNLIMITED)["key"])
    bench.settle()
    pause = random.Random(1)
    delays = []
    for _ in range(times):
        before = bench.shown()
        # Not in step with what the services do in turns.
        time.sleep(pause.uniform(0, 0.1))
        caller.send("GET", PATH)
        assert caller.answer() == 200
        answered = time.monotonic()
        eventually_sync(lambda before=before: bench.shown() > before, 30, _BETWEEN)
        delays.append(time.monotonic() - answered)
    section = Section(f"From a response to the dashboard, {times} times", ("from", "to", "p50", "p99", "worst"))
    section.rows.append(("the response came", "GET /api/v1/dashboard/stats shows it", *milliseconds(delays)))
    p50, p99, worst = section.rows[0][2:]
    section.promises.append(
        (
            f"response → visible on the dashboard, {times} times",
            "500 ms p99",
            f"p50 **{p50}**, p99 **{p99}**, worst **{worst}**",
        )
    )
    section.notes.append(
        f"Looked at with the administrator's key, whose own requests count elsewhere, {_BETWEEN * 1000:.0f} ms after each"
        " answer; so the figure contains that pause and the time of one such request."
    )
    return section
