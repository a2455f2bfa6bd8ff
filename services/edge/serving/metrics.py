"""The serving process's figures: plain integers on the hot path, turned into Prometheus families when they are asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.edge import compiled
from services.edge.clock import SECOND

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics(Collector):
    """Counts what a serving process does."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self._upstream_failures: Counter[tuple[str, str]] = Counter()
        self._failure_told_ns = 0
        self.log_failures = 0
        self.in_flight = 0
        self.connections = 0
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def answered(self, route: str, status: int, decision: str, seconds: float) -> None:
        """Counts a metered answer: the route's name, and seconds until its head."""
        self.requests[route, status // 100, decision] += 1
        self._buckets[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds += seconds

    def unmetered(self, reason: str) -> None:
        """Counts an answer that has no row in the usage log."""
        self.refused[reason] += 1

    def upstream_failed(self, route: str, kind: str, now_ns: int) -> bool:
        """Counts a request that an upstream failed; tells whether to log it: once a second, else a dead one floods the log."""
        self._upstream_failures[route, kind] += 1
        told = now_ns - self._failure_told_ns > SECOND
        if told:
            self._failure_told_ns = now_ns
        return told

    def collect(self) -> Iterable[Metric]:
        """The families, for the registry."""
        requests = CounterMetricFamily(
            "keyledger_edge_requests", "Metered answers", labels=["route", "status", "decision"]
        )
        for (route, status, decision), count in tuple(self.requests.items()):
            requests.add_metric([route, f"{status}xx", decision], count)
        yield requests
        unmetered = CounterMetricFamily("keyledger_edge_unmetered", "Answers without a row, by why", labels=["reason"])
        for reason, count in tuple(self.refused.items()):
            unmetered.add_metric([reason], count)
        yield unmetered
        failures = CounterMetricFamily(
            "keyledger_edge_upstream_failures", "Requests that an upstream failed", labels=["route", "kind"]
        )
        for (route, kind), count in tuple(self._upstream_failures.items()):
            failures.add_metric([route, kind], count)
        yield failures
        yield self._histogram()
        yield CounterMetricFamily("keyledger_edge_log_failures", "Request logs that failed", value=self.log_failures)
        yield GaugeMetricFamily("keyledger_edge_in_flight", "Requests under way", value=self.in_flight)
        yield GaugeMetricFamily(
            "keyledger_edge_compiled", "1: the compiled form runs, 0: plain Python", value=compiled.RUNS
        )
        yield GaugeMetricFamily("keyledger_edge_connections", "Connections of clients", value=self.connections)

    def _histogram(self) -> Metric:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._buckets, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "keyledger_edge_seconds", "Seconds until the answer's head", buckets=buckets, sum_value=self._seconds
        )
