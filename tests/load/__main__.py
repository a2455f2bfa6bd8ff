"""`make bench`: measures what Keyledger promises in figures, and writes them down."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from tests.load import edge, footprint, freshness, goals, latency, machine, metering, outage, refusal, servers
from tests.load.generator import WORKLOADS, Generator
from tests.load.lineup import FORMS, forms, lined_up
from tests.load.published import publish
from tests.load.report import Section, part
from tests.load.stack import Bench, directory, running

FIGURES = ("edge", "refusal", "freshness", "outage", "memory", "metering")
_LEAVABLE = (*FORMS, *servers.RIVALS)
_BY_THEMSELVES = {"metering"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Names = Annotated[list[str] | None, typer.Argument(help=f"Some of: {' '.join(FIGURES)}. All when none is named.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of `edge` (of its latencies half as many) and `metering`.")]
Seconds = Annotated[float, typer.Option(min=1, help="Seconds of load in each round of `edge`, for each proxy.")]
Times = Annotated[int, typer.Option(min=1, help="Repetitions of `refusal` and `freshness`.")]
Events = Annotated[int, typer.Option(min=10_000, help="Events of `metering`.")]
Away = Annotated[float, typer.Option(min=1, help="Seconds of the outage.")]
Without = Annotated[
    list[str] | None, typer.Option(help=f"Left out of `edge`; again for each of {' '.join(_LEAVABLE)}.")
]
Write = Annotated[bool, typer.Option("--write", help="Write what was measured into docs/figures.md and README.md.")]


@app.command()
def main(
    figures: Names = None,
    rounds: Rounds = 5,
    seconds: Seconds = 2,
    times: Times = 200,
    events: Events = 300_000,
    away: Away = 60,
    without: Without = None,
    write: Write = False,
) -> None:
    """Measures and prints a Markdown report. Fails when a run is invalid or did nothing."""
    chosen, left_out = _among(figures or FIGURES, FIGURES), _among(without or (), _LEAVABLE)
    if len(machine.cores()) < 2:
        raise SystemExit("error: this needs two cores, one for what is measured and one for the load")
    if "edge" in chosen:
        servers.require([name for name in servers.RIVALS if name not in left_out])
    found: dict[str, list[Section]] = {}
    if set(chosen) - _BY_THEMSELVES:
        found |= _of_the_stack(chosen, left_out, rounds, seconds, times, away)
    if "metering" in chosen:
        _say("metering ...")
        found["metering"] = [metering.measure(rounds=rounds, events=events)]
    parts = {name: part(name, found[name], f"make bench{_arguments()}") for name in chosen}
    sys.stdout.write("\n\n".join(parts.values()) + "\n")
    if problems := [problem for sections in found.values() for section in sections for problem in section.problems]:
        raise SystemExit("error: " + "; ".join(problems))
    if write:
        publish(parts, FIGURES)


def _of_the_stack(
    chosen: Sequence[str], without: Sequence[str], rounds: int, seconds: float, times: int, away: float
) -> dict[str, list[Section]]:
    """`edge` comes last: it leaves the stack's other processes behind in the background of one core."""
    found: dict[str, list[Section]] = {}
    _say("starting a stack ...")
    # One key asks for all: with 256 connections it has more requests open than a key may have otherwise.
    settings = {"KEYLEDGER_EDGE_OPEN_REQUESTS": "1024"} | FORMS[forms(without)[0]]
    with directory() as path, running(path, settings) as bench:
        generator = Generator(path)
        moments = {"idle, after the start": footprint.idle(bench)}
        if "refusal" in chosen:
            _say("refusal ...")
            found["refusal"] = [refusal.measure(bench, times=times)]
        if "freshness" in chosen:
            _say("freshness ...")
            found["freshness"] = [freshness.measure(bench, times=times)]
        if "outage" in chosen:
            _say("outage ...")
            found["outage"] = [outage.measure(bench, generator, seconds=away)]
        if {"edge", "memory"} & set(chosen):
            found["edge"] = list(_edge(bench, generator, without, rounds, seconds))
        moments["after the load"] = footprint.idle(bench)
        found["memory"] = [footprint.section(moments, len(bench.pids()))]
    return {name: sections for name, sections in found.items() if name in chosen}


def _edge(bench: Bench, generator: Generator, without: Sequence[str], rounds: int, seconds: float) -> Iterator[Section]:
    with lined_up(bench, without) as lineup:
        _say("edge: requests ...")
        costs = edge.measure(bench, lineup, generator, rounds=rounds, seconds=seconds)
        _say("edge: latency ...")
        halves = latency.measure(bench, lineup, generator, rounds=max(rounds // 2, 1), seconds=seconds)
        held_to = goals.section(costs, halves, lineup)
        if without:
            held_to.notes.append(f"Left out: {', '.join(without)}.")
        keys = lineup.keys
        held_to.notes.append(bench.expect_counted(keys, sum(generator.answered[str(key["key"])] for key in keys)))
        yield held_to
        for workload in WORKLOADS:
            yield edge.section(workload, costs[workload.name], lineup)
        yield latency.section(halves)


def _among(named: Sequence[str], known: Sequence[str]) -> list[str]:
    if unknown := set(named) - set(known):
        raise SystemExit(f"error: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if name in named]


def _arguments() -> str:
    return f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else ""


def _say(what: str) -> None:
    sys.stderr.write(what + "\n")


if __name__ == "__main__":
    # Ended by a signal, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except AssertionError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
