"""Requests through the edge: how many, what each costs, and how that compares with other proxies in the same rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from tests.e2e.load import UNLIMITED
from tests.load import generator, machine, servers
from tests.load.generator import Run
from tests.load.report import Section, spread
from tests.load.servers import Proxy
from tests.load.stack import Bench
from tests.support.eventually import eventually_sync

LIMITED = {"minute": 10**9, "hour": 10**9, "day": 10**9}
_HEADROOM = 2.0
_BUSY = 0.9
_COUNTED_SECONDS = 240.0

Rounds = dict[str, list[Run]]


def measure(bench: Bench, *, rounds: int, seconds: int) -> Section:
    """Loads the edge and the others in turn, so that what disturbs a round disturbs all of them."""
    keys = [bench.owner.create_key(name, limits=limits) for name, limits in (("free", UNLIMITED), ("limited", LIMITED))]
    serving = bench.pid("edge-serving")
    others = [pid for pid in bench.pids() if pid != serving]
    machine.pin(others, machine.LOAD_CORE)
    machine.background(others)
    url = bench.stack.url
    edge = Proxy("Keyledger's edge, key without limits", url, [serving], keys[0]["key"])
    limited = Proxy("Keyledger's edge, three limits", url, [serving], keys[1]["key"])
    alone = Proxy("the upstream alone", f"http://127.0.0.1:{bench.upstream_port}", [])
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(make(bench.directory, bench.upstream_port))
            for make in (servers.bare, servers.envoy_proxy, servers.nginx)
        ]
        compared = [edge, limited, *made]
        for proxy in compared:
            machine.pin(proxy.pids, machine.SUBJECT_CORE)
            generator.run(proxy, 1)
        found: Rounds = {proxy.name: [] for proxy in [alone, *compared]}
        for _ in range(rounds):
            for proxy in [alone, *compared]:
                bench.settle()
                found[proxy.name].append(generator.run(proxy, seconds))
    answers = sum(run.answers for proxy in (edge, limited) for run in found[proxy.name])
    section = _section(found, alone, compared, made)
    section.notes.append(_counted(bench, keys, answers))
    return section


def _section(found: Rounds, alone: Proxy, compared: Sequence[Proxy], others: Sequence[Proxy]) -> Section:
    bare, envoy = others[0].name, others[1].name
    # It may be faster than any generator that shares a core with an upstream.
    may_outrun = others[2:]
    section = Section(
        "Requests through the edge",
        ("proxy, on one core", "requests/s", "µs of CPU a request", "ratio to the bare proxy", "ratio to Envoy"),
    )
    for proxy in [alone, *compared]:
        runs = found[proxy.name]
        if not proxy.pids:
            section.rows.append((proxy.name, spread([run.rate for run in runs]), "", "", ""))
            continue
        ratios = [spread(_ratios(runs, found[base]), 2) for base in (bare, envoy)]
        busy = min(run.busy for run in runs)
        headroom = min(top.rate / run.rate for run, top in zip(runs, found[alone.name], strict=True))
        name = proxy.name if busy >= _BUSY else f"{proxy.name} (at least: its core was {busy:.0%} busy)"
        cost = spread([run.microseconds for run in runs], 1)
        section.rows.append((name, spread([run.rate for run in runs]), cost, *ratios))
        if headroom < _HEADROOM and proxy not in may_outrun:
            section.problems.append(f"{proxy.name}: the generator reached only {headroom:.1f} times its rate")
    section.notes.append(
        f"Median (minimum to maximum) of {len(found[bare])} rounds; in each round each proxy in turn, wrk with"
        f" {generator.CONNECTIONS} kept-alive connections, answers of 3 bytes. The proxy alone on core"
        f" {machine.SUBJECT_CORE}; wrk, the upstream (nginx), agent, Kafka, PostgreSQL and all services on core"
        f" {machine.LOAD_CORE}. A rate counts when the same generator reaches at least twice of it against the upstream"
        ' alone; "at least" where the proxy\'s own core was not busy all the time: the other one held it up.'
    )
    return section


def _ratios(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    return [run.rate / other.rate for run, other in zip(runs, base, strict=True)]


def _counted(bench: Bench, keys: Sequence[dict[str, int]], answers: int) -> str:
    """That all of it was metered. wrk forgets the answers that were on their way when it ended, and the warm-up's."""

    def counted() -> int:
        total = 0
        for key in keys:
            total += int(bench.owner.get(f"/api/v1/api-keys/{key['id']}").json()["usage_count"])
        return total if total >= answers else 0

    total = eventually_sync(counted, _COUNTED_SECONDS, 1.0)
    return f"\nMetered: {total:,} calls counted by the usage service, {answers:,} of them answers of the rounds above."
