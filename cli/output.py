"""What the command shows: plain lines, the same in a terminal, a pipe and a log; errors on stderr and exit code 1."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.local.directory import Directory
from deploy.local.errors import StackError

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

DirOption = Annotated[
    Path, typer.Option("--dir", help="The directory of the stack: its data, logs, secrets and address.")
]
DEFAULT_DIR = Path(".keyledger")


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns what the stack says is wrong into a message and exit code 1."""
    try:
        yield
    except StackError as error:
        errors.print(f"[bold red]error:[/] {_escaped(str(error))}")
        raise typer.Exit(1) from None


def say(text: str) -> None:
    """One line of news, as it is: brackets in it are no markup."""
    console.print(text, markup=False)


def shown(directory: Directory) -> str:
    """The directory as the user would type it: relative when it lies below the current one."""
    relative = os.path.relpath(directory.root)
    return str(directory.root) if relative.startswith("..") else relative


def command() -> str:
    """This command as the user can type it: in a checkout it is not on the PATH."""
    own = Path(sys.argv[0])
    return "keyledger" if own.name != "keyledger" or shutil.which("keyledger") else os.path.relpath(own)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
