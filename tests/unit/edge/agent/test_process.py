"""Why the agent's process ends: what contradicts the settings is told apart from what a restart may mend."""

from __future__ import annotations

import pytest

from services.edge.agent.process import contradiction
from shared.kafka import KafkaUnavailable
from shared.settings import PartitionsChanged

WRONG = PartitionsChanged("topic key-states has 3 partitions, not 6")


@pytest.mark.parametrize(
    "group",
    [
        ExceptionGroup("parts", [ExceptionGroup("part", [WRONG])]),
        ExceptionGroup("parts", [KafkaUnavailable("gone"), ExceptionGroup("part", [WRONG])]),
    ],
)
def test_another_number_of_partitions_is_found_wherever_it_was_raised(group: ExceptionGroup[Exception]) -> None:
    assert contradiction(group) is WRONG


def test_anything_else_is_left_to_be_seen() -> None:
    assert contradiction(ExceptionGroup("parts", [KafkaUnavailable("gone"), ValueError("a mistake")])) is None
