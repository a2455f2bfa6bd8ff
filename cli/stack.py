"""`keyledger up`, `down`, `status` and `logs`: the stack of one directory."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli import background
from cli.follow import follow
from cli.output import DEFAULT_DIR, DirOption, command, console, explained, say, shown
from deploy.local import stack
from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.supervisor import read_status

_STATUS = ("url", "ready", "processes")
_LOG_LINES = 100


def up(
    directory: DirOption = DEFAULT_DIR,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The edge's port; 0 takes one that is free.")] = 8080,
    routes: Annotated[Path | None, typer.Option(help="A TOML file with routes to your own upstreams.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Add a route /echo to an upstream that echoes, and clients that call it.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is ready, and leave it running.")] = False,
) -> None:
    """Start PostgreSQL, Kafka and all services, and keep them running until Ctrl-C."""
    started = time.monotonic()
    place = Directory(directory)
    options = stack.Options(port, routes, sample)

    def ready() -> None:
        _show_ready(place, options, time.monotonic() - started, detach)

    with explained():
        if detach:
            background.start(place, options, say)
            ready()
        else:
            stack.run(place, options, say, ready)
            say("All processes have ended.")


def down(
    directory: DirOption = DEFAULT_DIR,
    purge: Annotated[bool, typer.Option("--purge", help="Delete all data of the stack too.")] = False,
) -> None:
    """End all processes of the stack; its data stays."""
    place = Directory(directory)
    with explained():
        was_running = background.stop(place, say)
        say("All processes have ended." if was_running else f"Nothing is running in {shown(place)}.")
        if purge:
            _purge(place)


def status(
    directory: DirOption = DEFAULT_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show every process. Exit code 0 if all are ready, 1 if not."""
    report = read_status(Directory(directory))
    if as_json:
        typer.echo(json.dumps({name: report[name] for name in _STATUS}))
    elif report["processes"]:
        console.print(_table(report))
    else:
        say(f"Nothing is running in {directory}. Start it with `{command()} up --dir {directory}`.")
    raise typer.Exit(0 if report["ready"] else 1)


def logs(
    name: Annotated[str | None, typer.Argument(help="A process, such as keys-api; all if it is left out.")] = None,
    directory: DirOption = DEFAULT_DIR,
    keep: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is written from now on.")] = False,
) -> None:
    """Show the end of a process's log."""
    with explained():
        paths = _log_paths(Directory(directory), name)
        follow(paths, _LOG_LINES, keep, say)


def _show_ready(place: Directory, options: stack.Options, seconds: float, detached: bool) -> None:
    folder = shown(place)
    prefix = "" if folder.startswith("/") else "./"
    source = shlex.quote(str(Path(folder) / "env"))
    source = source if folder.startswith((".", "/")) else prefix + source
    say(f"\nKeyledger is ready after {seconds:.1f} s: {read_status(place)['url']}")
    say("Try:\n")
    say(f'    . {source} && curl -H "X-API-Key: $KEYLEDGER_API_KEY" $KEYLEDGER_URL/api/v1/dashboard/stats')
    if options.sample:
        say('    curl -H "X-API-Key: $KEYLEDGER_API_KEY" $KEYLEDGER_URL/echo/hello')
    say("")
    option = f" --dir {shlex.quote(folder)}" if folder != str(DEFAULT_DIR) else ""
    end = f"`{command()} down{option}`" if detached else "Ctrl-C"
    say(f"Look at it with `{command()} status{option}`, end it with {end}.")


def _purge(place: Directory) -> None:
    if not place.state.exists():
        raise StackError(f"There is no stack in {shown(place)}, so nothing was deleted.")
    place.purge()
    say(f"The stack's data in {shown(place)} is deleted.")


def _table(report: dict[str, object]) -> Table:
    table = Table(
        title=f"{report['url']}  {'ready' if report['ready'] else 'not ready'}", title_justify="left", box=None
    )
    for column in ("name", "role", "pid", "ready", "restarts"):
        table.add_column(column)
    rows = report["processes"]
    assert isinstance(rows, list)
    for row in rows:
        pid = str(row["pid"] or "-")
        table.add_row(row["name"], row["role"], pid, "yes" if row["ready"] else "[red]no[/]", str(row["restarts"]))
    return table


def _log_paths(place: Directory, name: str | None) -> list[Path]:
    existing = sorted(place.logs.glob("*.log"))
    if name is None and existing:
        return existing
    chosen = [path for path in existing if path.stem == name]
    if not chosen:
        names = ", ".join(path.stem for path in existing) or "none yet"
        raise StackError(f"There is no log {name or ''} in {place.logs}. There are: {names}.")
    return chosen
