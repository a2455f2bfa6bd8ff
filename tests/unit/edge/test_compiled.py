"""Only what was compiled of these very sources runs, and only if nobody asked for the plain form."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.edge import compiled

FORM = """from services.edge import compiled
from services.edge.http import head
print(compiled.STATE, head._scan_request.__module__)"""
needs_build = pytest.mark.skipif(not compiled.complete(compiled.build()), reason="nothing is compiled")


def form(root: Path, **variables: str) -> str:
    """The form that runs in a Python of its own, and where it takes its reading of heads from."""
    environment = {**os.environ, "PYTHONPATH": str(root), **variables}
    command = [sys.executable, "-P", "-c", FORM]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The edge and what it needs, elsewhere."""
    for part in ("services", "shared"):
        shutil.copytree(compiled.BUILDS.parents[2] / part, tmp_path / part)
    return tmp_path


@needs_build
def test_what_was_compiled_runs(copied: Path) -> None:
    assert form(copied, KEYLEDGER_EDGE_FORM="best") == "compiled services.edge.http.scan"


@needs_build
def test_the_plain_form_can_be_asked_for(copied: Path) -> None:
    assert form(copied, KEYLEDGER_EDGE_FORM="plain") == "plain services.edge.http.parts"


@needs_build
@pytest.mark.parametrize("name", ["http/scan.pyx", "limiter.py", "clock.py"])
def test_what_was_compiled_of_other_sources_does_not_run(copied: Path, name: str) -> None:
    source = copied / "services" / "edge" / name
    source.write_text(source.read_text() + "\n")
    assert form(copied, KEYLEDGER_EDGE_FORM="best") == "stale services.edge.http.parts"


def test_without_a_build_all_runs_plainly(copied: Path) -> None:
    shutil.rmtree(copied / "services" / "edge" / "builds", ignore_errors=True)
    assert form(copied, KEYLEDGER_EDGE_FORM="best") == "absent services.edge.http.parts"
