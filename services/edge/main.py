"""Entry point of the edge's processes."""

from __future__ import annotations

import os
import sys

from services.edge import parent
from services.edge.replica.writer import PartitionsChangedError
from services.edge.serving import process as serve
from services.edge.settings import EdgeSettings
from shared.process import Part, die_with_parent, run, until_signalled
from shared.settings import EX_CONFIG, load
from shared.telemetry import configure_logging

EX_USAGE = 64  # sysexits.h


def main(arguments: list[str]) -> None:
    """Runs the parent (no argument), the serving process (`serving`) or the agent (`agent`)."""
    if arguments not in ([], ["serving"], ["agent"]):
        sys.stderr.write("usage: python -m services.edge [serving|agent]\n")
        raise SystemExit(EX_USAGE)
    settings = load(EdgeSettings)
    role = arguments[0] if arguments else "parent"
    configure_logging(settings.log_level, service="edge", role=role)
    if role == "parent":
        run(parent.run(settings))
        return
    _stay_with(settings.parent)
    try:
        run(until_signalled(_part(role, settings)))
    except PartitionsChangedError as error:
        sys.stderr.write(f"KEYLEDGER_PARTITIONS: {error}\n")
        raise SystemExit(EX_CONFIG) from None


def _part(role: str, settings: EdgeSettings) -> Part:
    if role == "serving":
        return lambda stop: serve.run(settings, stop)
    # Imported here: a serving process must not even load a client of Kafka.
    from services.edge.agent import process as agent

    return lambda stop: agent.run(settings, stop)


def _stay_with(parent_id: int | None) -> None:
    if parent_id is None:
        return
    die_with_parent()
    if os.getppid() != parent_id:
        # It ended before we asked to be told.
        raise SystemExit(0)
