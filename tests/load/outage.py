"""An outage of what stores request events: the edge serves on at full speed, then all is caught up while requests go on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.load import machine
from tests.load.generator import VARIED, Generator, Run
from tests.load.report import Section, missed
from tests.load.servers import LIMITED, Proxy
from tests.load.stack import Bench
from tests.support.eventually import eventually_sync

_AWAY = ("usage-worker", "stats-worker")
_MEMORY_MAX = 200.0
"""MB of each worker, whatever waits."""
# Of the speed before, while it is caught up.
_SHARE = 0.1
_TURN_SECONDS = 2.0
_CAUGHT_UP_SECONDS = 600.0


def measure(bench: Bench, generator: Generator, *, seconds: float) -> Section:
    """Takes both workers away for so long."""
    key = bench.owner.create_key("outage", limits=LIMITED)
    edge = Proxy("Keyledger's edge", bench.port, [bench.pid("edge-serving")], str(key["key"]))
    shown = bench.shown()
    with contextlib.ExitStack() as away:
        for name in _AWAY:
            away.enter_context(bench.stack.stopped(name))
        full = generator.load(edge, VARIED, seconds=seconds, core=None)
        began = time.monotonic()
        with _going_on(generator, edge, full.rate * _SHARE) as runs:
            away.close()
            eventually_sync(
                lambda: _caught_up(bench, key, generator.answered[edge.key], shown), _CAUGHT_UP_SECONDS, 0.2
            )
            took, meanwhile = time.monotonic() - began, bench.counted([key]) - full.answers
    memory = {name: machine.most_memory(bench.pid(name)) for name in (*_AWAY, "edge-agent")}
    bench.expect_counted([key], generator.answered[edge.key])
    return _section(seconds, full, took, meanwhile, runs, memory)


def _caught_up(bench: Bench, key: Mapping[str, Any], answers: int, shown: int) -> bool:
    """Whether both services have so many calls, of which the dashboard showed some before."""
    return bench.counted([key]) >= answers and bench.shown() - shown >= answers


@contextlib.contextmanager
def _going_on(generator: Generator, edge: Proxy, rate: float) -> Iterator[list[Run]]:
    """So many requests a second until the context ends; what each few seconds showed."""
    over, runs, errors = threading.Event(), list[Run](), list[BaseException]()

    def go_on() -> None:
        try:
            while not over.is_set():
                runs.append(generator.load(edge, VARIED, seconds=_TURN_SECONDS, rate=rate, core=None))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield runs
    finally:
        over.set()
        thread.join()
    assert not errors, errors


def _section(
    seconds: float, full: Run, took: float, meanwhile: int, runs: list[Run], memory: dict[str, float]
) -> Section:
    made = Section("An outage caught up", ("what", "measured"))
    pace, rate = (full.answers + meanwhile) / took, meanwhile / took
    slowest = max(run.latencies[1] for run in runs)
    made.rows += [
        ("requests answered while the workers were away", f"{full.answers:,} in {seconds:.0f} s, {full.rate:,.0f}/s"),
        ("all stored, from the end of the outage, which the workers' start is part of", f"{took:.1f} s"),
        ("stored meanwhile", f"{pace:,.0f}/s"),
        ("requests that went on meanwhile", f"{rate:,.0f}/s, p99 at worst {slowest * 1000:.1f} ms"),
        *((f"{name}, at most", f"{held:,.0f} MB") for name, held in memory.items()),
    ]
    hour = 3600 * full.rate / (pace - rate) / 60
    most = max(memory[name] for name in _AWAY)
    made.promises += [
        (
            f"an outage of the workers at full speed, {full.answers:,} requests, caught up while {rate:,.0f}/s go on",
            "caught up",
            f"**{took:.0f} s**, {pace:,.0f}/s; an hour's {full.rate * 3600:,.0f} would take {hour:.0f} minutes",
        ),
        (
            "memory of a worker meanwhile",
            f"≤ {_MEMORY_MAX:.0f} MB",
            f"**{most:.0f} MB**{missed(most <= _MEMORY_MAX)}",
        ),
    ]
    made.notes.append(
        "Clients, upstream, edge, Kafka, PostgreSQL and all services share all cores here. Both workers are ended in order and"
        f" started again; meanwhile the edge answers as fast as it can, and then with a {1 / _SHARE:.0f}th of that rate. Caught up"
        " is when usage and stats service show all that was answered until then; at the end each answer is counted once."
    )
    return made
