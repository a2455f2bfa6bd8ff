"""What fuzzing keeps and begins with holds; and it finds what is wrong, and that it did nothing."""

from __future__ import annotations

import re
from contextlib import closing
from random import Random

import pytest

from services.edge import compiled, domain
from services.edge.http import body, lines, parts, paths
from services.edge.http.body import LengthReader
from tests.fuzz import __main__ as fuzz
from tests.fuzz.targets import TARGETS, Wrong

COMPILED = pytest.mark.skipif(not compiled.RUNS, reason="plain Python runs")


def replay(name: str) -> None:
    with closing(TARGETS[name]()) as target:
        for data in (*fuzz.kept(name), *target.seeds()):
            for seed in range(200 if name == "decisions" else 1):
                target.run(data, Random(f"{seed} {data!r}"))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_known_holds(name: str) -> None:
    replay(name)


@pytest.mark.parametrize(
    ("name", "module", "planted", "wrong"),
    [
        ("requests", body, "_SIZE", re.compile(rb" *([0-9A-Fa-f]{1,8}) *(?:;.*)?")),
        ("responses", body, "LengthReader", lambda length: LengthReader(length + 1)),
        ("heads", lines, "_is_line", re.compile(rb"([^:]+):\s*(.*)", re.DOTALL).fullmatch),
        pytest.param("scan", parts, "KEY", 99, marks=COMPILED),
        ("paths", paths, "_DOT_SEGMENT", re.compile(r"/\.{1,2}(?:[/;]|\Z)")),
        ("decisions", domain, "_paused", lambda _key, _owner: None),
    ],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, module: object, planted: str, wrong: object
) -> None:
    monkeypatch.setattr(module, planted, wrong)
    with pytest.raises(Wrong):
        replay(name)


class Idle:
    """Takes everything, or nothing."""

    def __init__(self, came_to: str) -> None:
        self.came_to = came_to

    def seeds(self) -> list[bytes]:
        return [b"x"]

    def run(self, _data: bytes, _random: Random) -> str:
        return self.came_to


@pytest.mark.parametrize(("came_to", "inputs"), [("accepted", 500), ("refused", 500), ("accepted", 1)])
def test_a_lane_that_did_nothing_does_not_pass(came_to: str, inputs: int) -> None:
    run = fuzz.Run("idle", Idle(came_to), 0)
    for _ in range(inputs):
        run.one(b"x")
    assert run.verdict() is not None
