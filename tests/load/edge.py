"""Requests through the edge: how many, what each costs, and how that compares with other proxies in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.load import machine
from tests.load.generator import CONNECTIONS, WORKLOADS, Generator, Run, Workload
from tests.load.lineup import Lineup
from tests.load.report import Section, spread
from tests.load.stack import Bench

# Less than this, and its figure is one of something else.
_BUSY_MIN = 0.5
_BUSY = 0.9
_WARM_SECONDS = 0.5

Rounds = Mapping[str, list[Run]]
"""What each round showed, by the proxy's name."""


def measure(bench: Bench, lineup: Lineup, generator: Generator, *, rounds: int, seconds: float) -> dict[str, Rounds]:
    """Loads all in turn with each workload, so that what disturbs a round disturbs all of them; by the workload's name."""
    proxies = [lineup.upstream, *lineup.proxies]
    found: dict[str, Rounds] = {each.name: {proxy.name: [] for proxy in proxies} for each in WORKLOADS}
    for proxy in proxies:
        for workload in WORKLOADS:
            generator.load(proxy, workload, seconds=_WARM_SECONDS)
    for _ in range(rounds):
        for workload in WORKLOADS:
            for proxy in proxies:
                bench.settle()
                found[workload.name][proxy.name].append(generator.load(proxy, workload, seconds=seconds))
    return found


def cheaper(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    """How many times the other's processor time a request is of this one's, in each round."""
    return [other.microseconds / run.microseconds for run, other in zip(runs, base, strict=True)]


def section(workload: Workload, found: Rounds, lineup: Lineup) -> Section:
    """The table of one workload."""
    bases = [proxy for name, proxy in lineup.rivals.items() if name in ("envoy", "nginx")]
    columns = ("proxy, on one core", "requests/s", "µs of CPU a request", *(f"{base.name} costs" for base in bases))
    made = Section(f"Requests through the edge: {workload.name.lower()}", columns)
    made.rows.append(
        (lineup.upstream.name, spread([run.rate for run in found[lineup.upstream.name]]), "", *("" for _ in bases))
    )
    for proxy in lineup.proxies:
        runs = found[proxy.name]
        busy = min(run.busy for run in runs)
        if busy < _BUSY_MIN:
            made.problems.append(f"{proxy.name}: its core was only {busy:.0%} busy")
        name = proxy.name if busy >= _BUSY else f"{proxy.name} (its core was {busy:.0%} busy)"
        times = [f"{spread(cheaper(runs, found[base.name]), 2)} ×" for base in bases]
        cost = spread([run.microseconds for run in runs], 1)
        made.rows.append((name, spread([run.rate for run in runs]), cost, *times))
    made.notes.append(
        f"Median (minimum to maximum) of {len(found[lineup.upstream.name])} rounds; in each round each proxy in turn, with"
        f" {CONNECTIONS} kept-alive connections that ask as soon as they are answered, answers of 3 bytes. The proxy alone on"
        f" core {machine.SUBJECT_CORE}; the load generator, the upstream (nginx), agent, Kafka, PostgreSQL and all services on"
        f" core {machine.LOAD_CORE}. Where a proxy's core was not busy all the time the other one held it up: it could answer"
        " more, and a request may cost it a little less. CPU is the user's and the kernel's, of the proxy's own processes; of"
        " the edge's the serving one."
    )
    return made
