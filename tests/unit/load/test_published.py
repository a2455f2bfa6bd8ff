"""What a run measured takes the place of the same figures in both documents, and leaves the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load import published
from tests.load.report import Section, part

_ORDER = ("edge", "memory")


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FIGURES", tmp_path / "figures.md")
    monkeypatch.setattr(published, "README", tmp_path / "README.md")
    published.FIGURES.write_text("# What was written before there were parts\n")
    published.README.write_text("# Read\n\n<!-- figures -->\n\nold\n\n<!-- /figures -->\n\nmore\n")


def written(name: str, measured: str) -> str:
    section = Section(f"The {name}", ("a", "b"), [("1", "2")], [(name, "much", measured)], ["A note."])
    return part(name, [section], f"make bench ARGS={name}")


def test_parts_of_several_runs_stand_side_by_side() -> None:
    published.publish({"memory": written("memory", "some")}, _ORDER)
    published.publish({"edge": written("edge", "more \\1")}, _ORDER)
    published.publish({"memory": written("memory", "less")}, _ORDER)
    text = published.FIGURES.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Figures", "## Edge", "### The edge", "## Memory", "### The memory",
    ]  # fmt: skip
    assert "ARGS=edge" in text and "some" not in text
    assert published.README.read_text() == (
        "# Read\n\n<!-- figures -->\n\n| what | promised | measured |\n| --- | --- | --- |\n"
        "| edge | much | more \\1 |\n| memory | much | less |\n\n<!-- /figures -->\n\nmore\n"
    )


def test_a_readme_without_a_place_is_said() -> None:
    published.README.write_text("# Read\n")
    with pytest.raises(AssertionError, match="no place"):
        published.publish({"edge": written("edge", "more")}, _ORDER)


def test_readme_has_a_place() -> None:
    root = Path(__file__).parents[3]
    assert "<!-- figures -->\n\n| what | promised | measured |\n" in (root / "README.md").read_text()
