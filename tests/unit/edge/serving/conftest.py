"""A stage for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.edge.serving.stage import Stage


@pytest.fixture
def make() -> Iterator[Callable[..., Stage]]:
    """Makes a stage with settings of its own."""
    made: list[Stage] = []

    def stage(**settings: Any) -> Stage:
        made.append(Stage(**settings))
        return made[-1]

    yield stage
    for each in reversed(made):
        each.close()


@pytest.fixture
def stage(make: Callable[..., Stage]) -> Stage:
    """A stage with the settings' defaults."""
    return make()
