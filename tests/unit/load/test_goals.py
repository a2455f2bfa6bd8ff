"""What was promised of the edge stands beside what came out, and a goal that was missed says so."""

from __future__ import annotations

from tests.load import goals
from tests.load.generator import WORKLOADS, Run
from tests.load.latency import CONNECTIONS, Half
from tests.load.lineup import Lineup
from tests.load.servers import Proxy


def _proxy(name: str) -> Proxy:
    return Proxy(name, 1, ())


def _lineup(*rivals: str) -> Lineup:
    edges = {form: _proxy(form) for form in ("compiled", "plain")}
    return Lineup(_proxy("upstream"), _proxy("free"), edges, {name: _proxy(name) for name in rivals}, ())


def _promises(lineup: Lineup, costs: dict[str, float], added: float) -> dict[str, str]:
    runs = {name: [Run(10, 1e6 / cost, 1.0, cost, (0, 0, 0, 0))] * 3 for name, cost in costs.items()}
    half = {name: Half(1.0, [(0.001, 0.001 + added, 0.01)] * 3, [(0.001, 0.001, 0.01)] * 3) for name in costs}
    found = {workload.name: runs for workload in WORKLOADS}
    section = goals.section(found, dict.fromkeys(CONNECTIONS, half), lineup)
    return {what: measured for what, _, measured in section.promises}


def test_goals_are_judged_by_cost_and_by_what_is_added() -> None:
    costs = {"compiled": 20.0, "plain": 30.0, "envoy": 33.0, "nginx": 19.0}
    promises = _promises(_lineup("envoy", "nginx"), costs, 0.001)
    assert "missed" not in promises["CPU a request, compiled: envoy takes"]
    assert promises["CPU a request, plain: envoy takes"].endswith("**missed**")
    assert promises["CPU a request, compiled: nginx takes"].startswith("**0.95** (0.95 to 0.95) × alike")
    assert "missed" not in promises["p99 added at half of the maximum, compiled, by connections"]
    # Not below: all have the same here.
    assert promises["p99 at half of the maximum, compiled, 256 connections"].endswith("**missed**")
    late = _promises(_lineup("envoy"), costs, 0.0021)
    assert late["p99 added at half of the maximum, plain, by connections"].endswith("**missed**")


def test_what_was_left_out_has_no_goal() -> None:
    promises = _promises(_lineup(), {"compiled": 20.0, "plain": 30.0}, 0.0)
    assert not [what for what in promises if "takes" in what or "256" in what]
