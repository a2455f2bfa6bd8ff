"""Composition root of the edge: its parent, and with a role one of the parent's children."""

from __future__ import annotations

from services.edge import parent
from services.edge.serving import process as serving
from services.edge.settings import EdgeSettings
from shared.process import die_with_parent, run_role


def main() -> None:
    """Runs the role that the command line names, without one the parent."""
    run_role("edge", EdgeSettings, {"parent": parent.run, "serving": _serving, "agent": _agent}, default="parent")


async def _serving(settings: EdgeSettings) -> None:
    if settings.parent is not None:
        die_with_parent(settings.parent)
    await serving.run(settings)


async def _agent(settings: EdgeSettings) -> None:
    # Imported here: a serving process must not even load a client of Kafka.
    from services.edge.agent import process as agent

    if settings.parent is not None:
        die_with_parent(settings.parent)
    await agent.run(settings)
