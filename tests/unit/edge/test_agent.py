"""How the agent's process ends when what it finds can't be right: at once, with status 78, and in words."""

from __future__ import annotations

import pytest

from services.edge.agent import end_if_wrong
from services.edge.replica_writer import PartitionsChangedError
from shared.kafka import KafkaUnavailable

WRONG = PartitionsChangedError("topic key-states has 3 partitions, not 6")


@pytest.mark.parametrize(
    "error",
    [
        WRONG,
        ExceptionGroup("parts", [ExceptionGroup("part", [WRONG])]),
        ExceptionGroup("parts", [KafkaUnavailable("gone"), ExceptionGroup("part", [WRONG])]),
    ],
)
def test_another_number_of_partitions_is_a_wrong_setting(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        end_if_wrong(error)
    assert ended.value.code == 78
    assert capsys.readouterr().err == f"KEYLEDGER_PARTITIONS: {WRONG}\n"


@pytest.mark.parametrize("error", [KafkaUnavailable("gone"), ExceptionGroup("parts", [ValueError("a mistake")])])
def test_anything_else_is_left_to_be_seen(error: Exception) -> None:
    end_if_wrong(error)
