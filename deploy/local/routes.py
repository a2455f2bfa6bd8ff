"""The routes file of a stack: the user's own, as it is, or with the sample's route behind it."""

from __future__ import annotations

from pathlib import Path

from deploy.local.directory import Directory, write_durably
from deploy.local.errors import StackError
from services.edge.routes import Route, RoutesError, parse

_NAME = "echo"
_PREFIX = "/echo"


def checked(path: Path) -> list[Route]:
    """The file's routes. Raises StackError with all that is wrong, before anything is started."""
    try:
        return parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"{path} can't be read: {error}. --routes wants a TOML file of routes.") from error
    except RoutesError as error:
        raise StackError(f"{path} can't be used:{error}") from error


def with_sample(directory: Directory, own: Path | None, port: int) -> Path:
    """A file with the user's routes and the sample's, whose upstream listens on `port`. Raises StackError if they clash."""
    if own and any(route.name == _NAME or route.prefix.rstrip("/") == _PREFIX for route in checked(own)):
        raise StackError(
            f"{own} has a route named {_NAME!r} or with the prefix {_PREFIX}, which --sample wants for its own. "
            "Change yours, or start without --sample."
        )
    sample = f'[routes.{_NAME}]\nprefix = "{_PREFIX}"\nupstream = "http://127.0.0.1:{port}"\n'
    text = f"{own.read_text()}\n{sample}" if own else sample
    try:
        parse(text)
    except RoutesError as error:
        raise StackError(f"{own} with the sample's route behind it can't be used:{error}") from error
    write_durably(directory.sample_routes, text)
    return directory.sample_routes
