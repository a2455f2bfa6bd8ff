"""Who is measured in one round: the upstream alone, the edge in its forms, and what it is compared with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from services.edge import compiled
from tests.e2e.load import UNLIMITED
from tests.load import machine
from tests.load.servers import KEY_HEADER, LIMITED, PATH, RIVALS, WITHOUT_POLICY, Proxy
from tests.load.stack import Bench
from tests.support.eventually import eventually_sync
from tests.support.service import free_port, listening
from tests.support.stack import family

FORMS: dict[str, dict[str, str]] = {
    "compiled": {"KEYLEDGER_EDGE_FORM": "compiled"},
    "plain": {"KEYLEDGER_EDGE_FORM": "plain"},
}
"""The edge's forms, with the settings that choose them. The stack's own edge has the first that isn't left out."""
_READY_SECONDS = 60.0


def forms(without: Sequence[str]) -> list[str]:
    """The forms that are not left out, the stack's own first. Ends the program with advice when one is not there."""
    found = [form for form in FORMS if form not in without]
    if not found:
        raise SystemExit("error: no form of the edge is left")
    if "compiled" in found and not compiled.RUNS:
        raise SystemExit(
            f"error: the edge is not compiled; it is {compiled.describe()} (or leave it out: --without compiled)"
        )
    return found


@dataclass(frozen=True)
class Lineup:
    """Those who are measured, each alone on its core. `edges` by form, with a key that has three limits."""

    upstream: Proxy
    free: Proxy
    edges: Mapping[str, Proxy]
    rivals: Mapping[str, Proxy]
    keys: Sequence[Mapping[str, Any]]

    @property
    def proxies(self) -> list[Proxy]:
        """All but the upstream."""
        return [self.free, *self.edges.values(), *self.rivals.values()]


@contextlib.contextmanager
def lined_up(bench: Bench, without: Sequence[str]) -> Iterator[Lineup]:
    """Starts those that aren't left out, and gives each its place."""
    limits = {"free": UNLIMITED, "limited": LIMITED}
    keys = [bench.owner.create_key(name, limits=each) for name, each in limits.items()]
    free, limited = (str(key["key"]) for key in keys)
    _behind(bench.pids(), bench.pid("edge-serving"))
    with contextlib.ExitStack() as stack:
        edges = {
            form: Proxy(f"Keyledger's edge, {form}, three limits", *stack.enter_context(_edge(bench, form)), limited)
            for form in forms(without)
        }
        rivals = {
            name: stack.enter_context(make(bench.directory, bench.upstream_port))
            for name, make in RIVALS.items()
            if name not in without
        }
        first, edge = next(iter(edges.items()))
        made = Lineup(
            Proxy("the upstream alone", bench.upstream_port, ()),
            Proxy(f"Keyledger's edge, {first}, no limits", edge.port, edge.pids, free),
            edges,
            rivals,
            keys,
        )
        for name, proxy in rivals.items():
            status = httpx2.get(f"http://127.0.0.1:{proxy.port}{PATH}", headers={KEY_HEADER: "another"}).status_code
            assert status == (200 if name in WITHOUT_POLICY else 401), f"{proxy.name}: {status} for an unknown key"
        for proxy in made.proxies:
            machine.pin(proxy.pids, machine.SUBJECT_CORE)
        yield made


@contextlib.contextmanager
def _edge(bench: Bench, form: str) -> Iterator[tuple[int, list[int]]]:
    """An edge in this form: the stack's own for the first one, else another beside it on the same Kafka. Port and processes."""
    if FORMS[form].items() <= bench.settings.items():
        yield bench.port, [bench.pid("edge-serving")]
        return
    port, internal = free_port(), free_port()
    own = {
        "KEYLEDGER_EDGE_PORT": str(port),
        "KEYLEDGER_INTERNAL_PORT": str(internal),
        "KEYLEDGER_EDGE_DATA": str(bench.directory / f"edge-{form}"),
    }
    command = [sys.executable, "-P", "-m", "services.edge"]
    variables = machine.variables(bench.pid("edge")) | own | FORMS[form]
    with listening(command, port, bench.directory / f"edge-{form}.log", variables) as pid:
        page = eventually_sync(lambda: _ready(internal), _READY_SECONDS)
        serving = next(row["pid"] for row in page["processes"] if row["role"] == "serving")
        _behind(family(pid), serving)
        yield port, [serving]


def _behind(pids: Sequence[int], serving: int) -> None:
    """Puts an edge's other processes, and what stands behind it, into the background of the load's core."""
    others = [pid for pid in pids if pid != serving]
    machine.pin(others, machine.LOAD_CORE)
    machine.background(others)


def _ready(internal: int) -> dict[str, Any] | None:
    answer = httpx2.get(f"http://127.0.0.1:{internal}/readyz")
    return dict(answer.json()) if answer.status_code == 200 else None
