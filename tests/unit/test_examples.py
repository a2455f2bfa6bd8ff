"""The examples are for others: they import nothing of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_needs_only_what_it_says(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    assert packages <= {"consume": {"aiokafka"}, "upstream": {"jwt"}}.get(path.stem, set())
