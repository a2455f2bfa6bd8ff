"""Which form of the edge's code runs: as it is written, or with the modules that are compiled where there is a C compiler.

`python -m deploy.compile` puts what it makes of the sources into a directory that is named by their hash, from which it is
imported here. So a build of other sources is never found, let alone taken instead of what was edited since.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal, cast

_EDGE = Path(__file__).parent
SCANNER = "services.edge.http.scan"
"""Written in Cython, beside the plain `http.parts`."""
MODULES = tuple(
    f"services.edge.{name}"
    for name in (
        "http.head", "http.rewrite", "limiter", "serving.answering", "serving.connection", "serving.exchange", "serving.gate",
        "serving.ledger", "serving.limits", "serving.link", "upstream.connection", "upstream.pool",
    )
)  # fmt: skip
"""Plain Python that mypyc compiles; it runs as it is where it is not."""
LIBRARY = "keyledger_edge__mypyc"
BUILDS = _EDGE / "builds"
SUFFIX = EXTENSION_SUFFIXES[0]
VARIABLE = "KEYLEDGER_EDGE_FORM"

Form = Literal["best", "plain", "compiled"]
State = Literal["compiled", "plain", "stale", "absent"]
"""Which form runs: compiled, or plain: because that was asked for, or the build is of other sources, or there is none."""


def source(name: str) -> Path:
    """The file that a module is compiled from."""
    return _EDGE.joinpath(*name.split(".")[2:]).with_suffix(".pyx" if name == SCANNER else ".py")


def build() -> Path:
    """The directory that the build of the sources as they are now has, or would have. All of the edge's count: of those that are
    not compiled, constants and types are in what is.
    """
    content = hashlib.sha256()
    for path in (source(SCANNER), *sorted(_EDGE.rglob("*.py"))):
        content.update(b"%b\0%b\0" % (str(path.relative_to(_EDGE)).encode(), path.read_bytes()))
    return BUILDS / content.hexdigest()[:16]


def built(name: str, directory: Path) -> Path:
    """The file of a module in a build, for this Python and machine."""
    return directory / f"{name}{SUFFIX}"


def complete(directory: Path) -> bool:
    """Whether all of a build is there for this Python and machine."""
    return all(built(name, directory).exists() for name in (SCANNER, *MODULES, LIBRARY))


class _Finder:
    """Finds compiled modules in a build."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names = {SCANNER, *MODULES, LIBRARY}

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """importlib: where the module is."""
        if name not in self._names:
            return None
        path = str(built(name, self._directory))
        return spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))


def _install() -> State:
    if os.environ.get(VARIABLE) == "plain":
        return "plain"
    directory = build()
    if complete(directory):
        sys.meta_path.insert(0, cast("type", _Finder(directory)))
        return "compiled"
    return "stale" if any(complete(other) for other in BUILDS.glob("[!.]*")) else "absent"


STATE = _install()
RUNS = STATE == "compiled"
"""Whether the compiled modules are used."""


def describe() -> str:
    """The form that runs, in words."""
    return {
        "compiled": "compiled",
        "plain": "plain Python, as asked for",
        "stale": "plain Python: what was compiled is of other sources (make setup compiles them)",
        "absent": "plain Python: nothing is compiled (make setup does, with a C compiler)",
    }[STATE]
