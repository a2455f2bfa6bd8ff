"""How long requests take at half of what each proxy can do, due at moments that don't wait for answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.load.generator import VARIED, Generator
from tests.load.lineup import Lineup
from tests.load.report import Section, spread
from tests.load.stack import Bench

CONNECTIONS = (4, 32, 256)
_LEFT_OUT = {"bare", "nginx-pypi"}
_SHARE = 0.5
_MAXIMUM_SECONDS = 1.0

Times = list[tuple[float, float, float]]
"""p50, p99 and p99.9 (s) of each round."""


@dataclass
class Half:
    """A proxy at half of its rate: its latencies, and in the same rounds those of the upstream alone at the same rate."""

    rate: float
    through: Times = field(default_factory=list)
    alone: Times = field(default_factory=list)

    def added(self) -> list[float]:
        """What the p99 is longer (s) than without the proxy, in each round."""
        return [mine[1] - bare[1] for mine, bare in zip(self.through, self.alone, strict=True)]

    def p99(self) -> list[float]:
        """In each round (s)."""
        return [each[1] for each in self.through]


Halves = Mapping[int, Mapping[str, Half]]
"""By connections and the proxy's name."""


def measure(bench: Bench, lineup: Lineup, generator: Generator, *, rounds: int, seconds: float) -> Halves:
    """Finds each one's maximum, then loads each in turn with half of it."""
    proxies = [*lineup.edges.values(), *(proxy for name, proxy in lineup.rivals.items() if name not in _LEFT_OUT)]
    found: dict[int, dict[str, Half]] = {connections: {} for connections in CONNECTIONS}
    for connections, halves in found.items():
        for proxy in proxies:
            bench.settle()
            most = generator.load(proxy, VARIED, seconds=_MAXIMUM_SECONDS, connections=connections)
            halves[proxy.name] = Half(most.rate * _SHARE)
    for _ in range(rounds):
        for connections, halves in found.items():
            for proxy in proxies:
                half = halves[proxy.name]
                for target, times in ((proxy, half.through), (lineup.upstream, half.alone)):
                    bench.settle()
                    run = generator.load(target, VARIED, seconds=seconds, connections=connections, rate=half.rate)
                    times.append(run.latencies[:3])
    return found


def section(found: Halves) -> Section:
    """The table."""
    made = Section(
        "Latency at half of each one's own maximum",
        ("connections", "proxy", "requests/s", "p50", "p99", "p99.9", "p99 added"),
    )
    rounds = 0
    for connections, halves in found.items():
        for name, half in halves.items():
            rounds = len(half.through)
            times = (_milliseconds(list(each)) for each in zip(*half.through, strict=True))
            made.rows.append((str(connections), name, f"{half.rate:,.0f}", *times, _milliseconds(half.added())))
    made.notes.append(
        f"Median (minimum to maximum) of {rounds} rounds, ms. Requests that differ each time are due at random moments (a"
        " Poisson process, the same for all), whatever the answers do, and latency counts from the moment a request was due:"
        " who stalls has those counted that waited for it. The maximum is each one's own with as many connections; `added` is"
        " compared with the upstream alone at the same rate in the same round. Generator and upstream share a core with all"
        " that stands behind the edge: what the upstream alone shows is theirs."
    )
    return made


def _milliseconds(seconds: list[float]) -> str:
    return spread([each * 1000 for each in seconds], 2)
