"""`keyledger doctor`: what is missing or wrong, on this machine and with the stack of a directory, and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer

from cli.output import DEFAULT_DIR, DirOption, console
from deploy.doctor import Finding, Level
from deploy.local.directory import Directory

_MARKS = {Level.ok: "[green]ok     [/]", Level.warning: "[yellow]warning[/]", Level.error: "[bold red]error  [/]"}


def doctor(
    directory: DirOption = DEFAULT_DIR,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port that the edge is to have.")] = 8080,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Say what is missing or wrong, on this machine and with the stack, and what to do. Exit code 1 if anything is an error."""
    # They bring the clients of everything that they ask, which the other commands need not wait for.
    from deploy.doctor import machine, stack  # noqa: PLC0415

    place = Directory(directory)
    machine_found = machine.checks(place, port, running=place.holder() is not None)
    stack_found = asyncio.run(stack.checks(place))
    if as_json:
        typer.echo(json.dumps({"machine": _rows(machine_found), "stack": _rows(stack_found)}))
    else:
        _show("This machine", machine_found)
        _show(f"The stack in {directory}", stack_found)
    failed = any(finding.level is Level.error for finding in (*machine_found, *stack_found))
    raise typer.Exit(1 if failed else 0)


def _rows(found: Iterable[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in found]


def _show(title: str, found: list[Finding]) -> None:
    console.print(f"[bold]{title}[/]")
    width = max(len(finding.check) for finding in found)
    for finding in found:
        console.print(f"  {_MARKS[finding.level]}  {finding.check:<{width}}  ", end="")
        console.print(finding.what, markup=False)
        if finding.todo:
            console.print(f"{'':{width + 13}}-> {finding.todo}", markup=False)
