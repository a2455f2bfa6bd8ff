"""Compiles what is not compiled yet, if there is a C compiler: python -m deploy.compile [--required]."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from services.edge import compiled

_SHARED = ("-dynamiclib", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)
_FLAGS = ("-O2", "-fPIC", "-DNDEBUG", "-w", *_SHARED)
_SECONDS = 300


class _NotCompiledError(Exception):
    """Nothing could be compiled, and why."""


def main() -> None:
    """Without a compiler it says so and ends well, since all runs without it too; with `--required` it fails."""
    parser = argparse.ArgumentParser(prog="python -m deploy.compile")
    parser.add_argument("--required", action="store_true", help="fail when it can't be compiled")
    required = parser.parse_args().required
    directory = compiled.build()
    if compiled.complete(directory):
        return
    try:
        _compile(directory)
    except _NotCompiledError as error:
        sys.stderr.write(f"The edge runs in its plain form, which is slower: {error}\n")
        raise SystemExit(required) from None


def _compile(directory: Path) -> None:
    compiler = _compiler()
    compiled.BUILDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=compiled.BUILDS, prefix=".") as made:
        for name, source in compiled.SOURCES.items():
            _one(compiler, name, source, Path(made))
        directory.mkdir(exist_ok=True)
        for name in compiled.SOURCES:
            compiled.built(name, Path(made)).replace(compiled.built(name, directory))
    for other in compiled.BUILDS.iterdir():
        if other != directory:
            shutil.rmtree(other, ignore_errors=True)


def _compiler() -> list[str]:
    wanted = shlex.split(os.environ.get("CC", "")) or shlex.split(sysconfig.get_config_var("CC") or "")
    found = next((each for each in (wanted, ["cc"], ["gcc"], ["clang"]) if each and shutil.which(each[0])), None)
    if found is None:
        raise _NotCompiledError("there is no C compiler")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise _NotCompiledError("this Python's header files are not there")
    return found


def _one(compiler: list[str], name: str, source: Path, directory: Path) -> None:
    translated = directory / f"{name}.c"
    _run([sys.executable, "-m", "cython", "-3", "--module-name", name, str(source), "-o", str(translated)])
    include = f"-I{sysconfig.get_path('include')}"
    _run([*compiler, *_FLAGS, include, str(translated), "-o", str(compiled.built(name, directory))])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NotCompiledError(str(error)) from None
    if done.returncode:
        raise _NotCompiledError(f"{' '.join(command[:3])} ... failed:\n{done.stderr}")


if __name__ == "__main__":
    main()
