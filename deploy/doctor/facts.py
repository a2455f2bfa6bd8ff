"""What the checks of a stack know of it: its files, its status, and where its processes tell of themselves."""

from __future__ import annotations

import os

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import environment, ports, servers, services
from deploy.local.directory import Directory
from deploy.local.state import load
from deploy.local.supervisor import read_status

TIMEOUT = 5.0
"""Seconds until who does not answer counts as silent."""


class Stack:
    """A stack that there is. Raises StackError when its state is damaged."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.status = read_status(directory)
        self.variables = environment.read(directory.env)
        state = load(directory)
        self.cluster = state.cluster_id
        self.owner_id = state.owner_id or 1
        self.ports = ports.numbered((*servers.PORT_NAMES, *services.PORT_NAMES), state.block)

    @property
    def option(self) -> str:
        """How a command names this stack."""
        relative = os.path.relpath(self.directory.root)
        return f"--dir {self.directory.root if relative.startswith('..') else relative}"

    def internal(self, name: str) -> int:
        """The internal port of a process."""
        return self.ports[f"{name}-internal"]

    def logs(self, name: str) -> str:
        """The command that shows what a process wrote."""
        return f"keyledger logs {name} {self.option}"

    async def figures(self, name: str) -> dict[str, list[float]]:
        """The values of each metric of a process; none when it does not answer."""
        try:
            async with httpx2.AsyncClient(timeout=TIMEOUT) as client:
                text = (await client.get(f"http://127.0.0.1:{self.internal(name)}/metrics")).text
        except httpx2.HTTPError:
            return {}
        found: dict[str, list[float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.value)
        return found
