"""`make bench`: measures what Keyledger promises in figures, and writes them down."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from tests.load import edge, footprint, freshness, generator, machine, metering, refusal
from tests.load.report import Section, document
from tests.load.stack import running

FIGURES = ("edge", "refusal", "freshness", "memory", "metering")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_WRITTEN = Path("docs/figures.md")

Names = Annotated[list[str] | None, typer.Argument(help=f"Some of: {' '.join(FIGURES)}. All when none is named.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of `edge` and `metering`.")]
Seconds = Annotated[int, typer.Option(min=1, help="Seconds of load in each round of `edge`, for each proxy.")]
Times = Annotated[int, typer.Option(min=1, help="Repetitions of `refusal` and `freshness`.")]
Events = Annotated[int, typer.Option(min=10_000, help="Events of `metering`.")]


@app.command()
def main(
    figures: Names = None, rounds: Rounds = 5, seconds: Seconds = 3, times: Times = 200, events: Events = 300_000
) -> None:
    """Measures and prints a Markdown report; all figures together are also written to docs/figures.md.

    Fails when a run is invalid or did nothing.
    """
    chosen = set(figures or FIGURES)
    if unknown := chosen - set(FIGURES):
        raise SystemExit(f"error: there is no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if len(machine.cores()) < 2:
        raise SystemExit("error: this needs two cores, one for what is measured and one for the load")
    generator.require()
    sections = _of_the_stack(chosen, rounds, seconds, times) if chosen - {"metering"} else []
    if "metering" in chosen:
        _say("metering ...")
        sections.append(metering.measure(rounds=rounds, events=events))
    text = document(sections, f"make bench{_arguments()}")
    sys.stdout.write(text)
    problems = [problem for section in sections for problem in section.problems]
    if problems:
        raise SystemExit("error: " + "; ".join(problems))
    if chosen == set(FIGURES):
        _WRITTEN.parent.mkdir(exist_ok=True)
        _WRITTEN.write_text(text)


def _of_the_stack(chosen: set[str], rounds: int, seconds: int, times: int) -> list[Section]:
    """`edge` comes last: it leaves the stack's other processes behind in the background of one core."""
    sections: list[Section] = []
    _say("starting a stack ...")
    with running() as bench:
        moments = {"idle, after the start": footprint.idle(bench)}
        if "refusal" in chosen:
            _say("refusal ...")
            sections.append(refusal.measure(bench, times=times))
        if "freshness" in chosen:
            _say("freshness ...")
            sections.append(freshness.measure(bench, times=times))
        if chosen & {"edge", "memory"}:
            _say("edge ...")
            section = edge.measure(bench, rounds=rounds, seconds=seconds)
            if "edge" in chosen:
                sections.insert(0, section)
        if "memory" in chosen:
            moments["after the load"] = footprint.idle(bench)
            sections.append(footprint.section(moments, len(bench.pids())))
    return sections


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
