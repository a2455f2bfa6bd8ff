"""What the edge is held to, and whether it got there in this run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from tests.load.edge import Rounds, cheaper
from tests.load.generator import IDENTICAL, VARIED
from tests.load.latency import Halves
from tests.load.lineup import Lineup
from tests.load.report import PROMISES, Section, missed, spread

_CHEAPER = {
    "compiled": {
        "envoy": (1.5, 1.5),
        "nginx": (1.0, 1.0),
        "nginx-pypi": (1.0, 1.0),
        "lua": (0.7, 0.7),
        "fastapi": (20.0, 20.0),
    },
    "plain": {"envoy": (1.3, 1.0)},
}
"""How many times the edge's CPU a request is the other's, at least: with requests all alike, and with different ones."""
_ADDED_MAX = 0.002
"""Seconds of the p99."""
_MANY = 256

Row = tuple[str, str, str]


def section(found: Mapping[str, Rounds], halves: Halves, lineup: Lineup) -> Section:
    """Each goal with what came out; those whose parts were left out are missing."""
    made = Section("What the edge is held to", PROMISES)
    for form, edge in lineup.edges.items():
        made.promises += [
            _rate(form, found, edge.name),
            *_costs(form, found, lineup),
            *_latencies(form, halves, lineup),
        ]
    made.notes.append(
        "By the median of the rounds, for a key with three limits. The edge looks the key up, counts three sliding windows"
        " without ever letting one be exceeded and tells the client of one, signs for the upstream who it is, and records each"
        " request. Envoy checks the key and takes from one token bucket; nginx with Lua and FastAPI with slowapi check it and"
        " count three windows, each by two counters; none of them tells, signs or records. All configurations are in"
        " `tests/load/proxies`."
    )
    return made


def _rate(form: str, found: Mapping[str, Rounds], edge: str) -> Row:
    alike, different = (spread([run.rate for run in found[each.name][edge]]) for each in (IDENTICAL, VARIED))
    return f"requests/s through the edge, {form}, on one core", "", f"{alike} alike, {different} different"


def _costs(form: str, found: Mapping[str, Rounds], lineup: Lineup) -> Iterator[Row]:
    edge = lineup.edges[form].name
    for rival, goals in _CHEAPER[form].items():
        if rival not in lineup.rivals:
            continue
        other = lineup.rivals[rival].name
        ratios = [cheaper(found[each.name][edge], found[each.name][other]) for each in (IDENTICAL, VARIED)]
        alike, different = (spread(each, 2) for each in ratios)
        promised = f"≥ {goals[0]:g} ×" if len(set(goals)) == 1 else f"≥ {goals[0]:g} × alike, {goals[1]:g} × different"
        met = all(statistics.median(each) >= goal for each, goal in zip(ratios, goals, strict=True))
        measured = f"{alike} × alike, {different} × different{missed(met)}"
        yield f"CPU a request, {form}: {other} takes", promised, measured


def _latencies(form: str, halves: Halves, lineup: Lineup) -> Iterator[Row]:
    edge = lineup.edges[form].name
    added = {connections: by_name[edge].added() for connections, by_name in halves.items()}
    met = all(statistics.median(each) <= _ADDED_MAX for each in added.values())
    shown = ", ".join(f"{_milliseconds(each)} with {connections}" for connections, each in added.items())
    yield (
        f"p99 added at half of the maximum, {form}, by connections",
        f"≤ {_ADDED_MAX * 1000:g} ms",
        f"{shown}{missed(met)}",
    )
    if "envoy" in lineup.rivals:
        mine, envoy = (halves[_MANY][name].p99() for name in (edge, lineup.rivals["envoy"].name))
        met = statistics.median(mine) < statistics.median(envoy)
        measured = f"{_milliseconds(mine)}, Envoy's {_milliseconds(envoy)}{missed(met)}"
        yield f"p99 at half of the maximum, {form}, {_MANY} connections", "less than Envoy's", measured


def _milliseconds(seconds: list[float]) -> str:
    return f"{spread([each * 1000 for each in seconds], 2)} ms"
