"""Fuzzes for so long: python -m tests.fuzz [TARGET ...] [--seconds 60] [--seed N] [--keep]."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

_CORPUS = Path(__file__).parent / "corpus"
# A lane that did nothing must not pass.
_INPUTS_MIN = 200
_LONGEST_KEPT = 400


@dataclass
class Run:
    """One target's fuzzing: the pool of inputs, and what they came to."""

    name: str
    target: Any
    seed: int
    pool: list[bytes] = field(default_factory=list)
    found: dict[str, bytes] = field(default_factory=dict)
    accepted: int = 0
    inputs: int = 0

    def start(self) -> None:
        """Tries all that is known."""
        for data in (*kept(self.name), *self.target.seeds()):
            self.pool.append(data)
            self.one(data)

    def grow(self, until: float, random: Random, least: int = 0) -> None:
        """Tries new inputs until then, or until there were so many."""
        while time.monotonic() < until and not 0 < least <= self.inputs:
            self.one(mutated(random, random.choice(self.pool), self.pool))

    def one(self, data: bytes) -> None:
        """Tries an input, which goes into the pool when what it comes to is new."""
        self.inputs += getattr(self.target, "batch", 1)
        try:
            came_to = self.target.run(data, Random(f"{self.seed} {data!r}"))
        except Exception as error:
            keep(self.name, [getattr(error, "data", None) or data])
            raise SystemExit(f"error: {self.name}, seed {self.seed}: {error!r}\n  input (kept): {data!r}") from error
        self.accepted += came_to.startswith("accepted")
        if came_to not in self.found:
            self.found[came_to] = data
            self.pool.append(data)

    def verdict(self, least: int = 0) -> str | None:
        """Why this was no fuzzing, if it was none."""
        if self.inputs < max(_INPUTS_MIN, least):
            return f"{self.name} tried only {self.inputs} inputs"
        if not 0 < self.accepted < self.inputs:
            return f"{self.name} accepted {self.accepted} of {self.inputs} inputs"
        return None


def kept(name: str) -> list[bytes]:
    """The inputs that were kept of a target."""
    path = _CORPUS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line).encode("latin-1") for line in lines]


def keep(name: str, inputs: list[bytes]) -> None:
    """Keeps inputs."""
    every = sorted({*kept(name), *inputs}, key=lambda data: (len(data), data))
    lines = [json.dumps(data.decode("latin-1")) for data in every]
    (_CORPUS / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def main() -> None:
    """Fuzzes each target for its share of the time; ends with 1 when something did not hold, or nothing was done."""
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (60)")
    parser.add_argument("--inputs", type=int, default=0, help="end sooner, after so many of each; fewer fail")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="repeats a run")
    parser.add_argument("--keep", action="store_true", help="keep inputs that came to something new")
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    sys.stdout.write(f"seed {arguments.seed}\n")
    wrong: list[str] = []
    for name in names:
        run = Run(name, TARGETS[name](), arguments.seed)
        started = time.monotonic()
        run.start()
        run.grow(started + arguments.seconds / len(names), Random(f"{arguments.seed} {name}"), arguments.inputs)
        took = time.monotonic() - started
        rate = f"{run.inputs:8,} inputs ({run.inputs / took:,.0f}/s)"
        sys.stdout.write(f"{name:10} {rate}, {run.accepted:,} accepted, {len(run.found)} kinds of outcome\n")
        wrong += [verdict] if (verdict := run.verdict(arguments.inputs)) else []
        if arguments.keep:
            keep(name, [data for data in run.found.values() if len(data) <= _LONGEST_KEPT])
    if wrong:
        raise SystemExit("error: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
