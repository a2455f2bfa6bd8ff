"""A worker whose settings contradict the topics."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.events.topics import TICKET_EVENTS
from tests.support.service import service
from tests.support.stack import Servers


def test_another_number_of_partitions_ends_it_with_what_to_set(servers: Servers, tmp_path: Path) -> None:
    said = r"it ended with 78: [\s\S]*KEYLEDGER_PARTITIONS: topic ticket-events has 6 partitions, not 3"
    environment = {"KEYLEDGER_PARTITIONS": "3"}
    with (
        pytest.raises(SystemExit, match=said),
        service("tickets", servers, tmp_path, environment=environment, topics=[TICKET_EVENTS]),
    ):
        pass
