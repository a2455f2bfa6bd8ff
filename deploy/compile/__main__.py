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
_SECONDS = 600
# What the edge's own type checker allows and mypy does not.
_OPTIONS = [
    "--ignore-missing-imports",
    "--follow-imports=silent",
    *(f"--disable-error-code={code}" for code in ("func-returns-value", "misc")),
]
_SETUP = """
from mypyc.build import mypycify
from setuptools import setup

setup(name="keyledger-edge", packages=[], ext_modules=mypycify(
    {options!r} + {sources!r}, group_name="keyledger_edge", target_dir={target!r}, opt_level="2", debug_level="0"
))
"""


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
    sys.stderr.write("Compiling the edge's hot path ...\n")
    compiled.BUILDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=compiled.BUILDS, prefix=".") as made:
        _scanner(compiler, Path(made))
        _modules(compiler, Path(made))
        directory.mkdir(exist_ok=True)
        for name in (compiled.SCANNER, *compiled.MODULES, compiled.LIBRARY):
            compiled.built(name, Path(made)).replace(compiled.built(name, directory))
    for other in compiled.BUILDS.glob("[!.]*"):
        # Those that are hidden are being made.
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


def _scanner(compiler: list[str], directory: Path) -> None:
    name, translated = compiled.SCANNER, directory / "scan.c"
    _run(
        [sys.executable, "-m", "cython", "-3", "--module-name", name, str(compiled.source(name)), "-o", str(translated)]
    )
    include = f"-I{sysconfig.get_path('include')}"
    _run([*compiler, *_FLAGS, include, str(translated), "-o", str(compiled.built(name, directory))])


def _modules(compiler: list[str], directory: Path) -> None:
    script = directory / "setup.py"
    script.write_text(
        _SETUP.format(
            target=str(directory / "c"),
            options=_OPTIONS,
            sources=[str(compiled.source(name)) for name in compiled.MODULES],
        )
    )
    # By the path of each module's package, from the directory that they are all below.
    root = compiled.BUILDS.parents[2]
    environment = {**os.environ, "CC": shlex.join(compiler)}
    _run(
        [sys.executable, str(script), "-q", "build", "-b", str(directory), "--build-lib", str(directory)],
        root,
        environment,
    )
    for name in compiled.MODULES:
        directory.joinpath(*name.split(".")).with_suffix(compiled.SUFFIX).replace(compiled.built(name, directory))


def _run(command: list[str], directory: Path | None = None, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS, cwd=directory, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NotCompiledError(str(error)) from None
    if done.returncode:
        raise _NotCompiledError(f"{' '.join(command[:3])} ... failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
