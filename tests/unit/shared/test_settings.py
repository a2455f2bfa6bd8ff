"""Settings from the environment and from files, and what a process says of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.keys.settings import Settings
from shared import settings
from shared.settings import EX_CONFIG, is_given, load

DSN = "postgresql://keys:secret@postgres/keys"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without settings, and the directory of secrets."""
    for name in ("KEYLEDGER_KAFKA", "KEYLEDGER_KEYS_DATABASE", "KEYLEDGER_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "SECRETS", tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    return tmp_path / "secrets"


def test_a_file_has_the_name_of_its_variable_which_wins(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "KEYLEDGER_KEYS_DATABASE").write_text(DSN + "\n")
    (files / "KEYLEDGER_KAFKA").write_text("file:1")
    monkeypatch.setenv("KEYLEDGER_KAFKA", "environment:1")
    found = load(Settings)
    assert (found.database, found.kafka) == (DSN, "environment:1")


def test_what_is_given(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_given("KEYLEDGER_KEYS_DATABASE")
    (files / "KEYLEDGER_KEYS_DATABASE").write_text(DSN)
    monkeypatch.setenv("KEYLEDGER_KAFKA", "kafka:9092")
    assert is_given("KEYLEDGER_KEYS_DATABASE") and is_given("KEYLEDGER_KAFKA")


def test_all_that_is_wrong_is_said_at_once_and_no_value(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "KEYLEDGER_KEYS_DATABASE").write_text("a-secret")
    monkeypatch.setenv("KEYLEDGER_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        load(Settings)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == EX_CONFIG
    assert {line.partition(" (")[0] for line in lines} == {
        "KEYLEDGER_KAFKA",
        "KEYLEDGER_KEYS_DATABASE",
        "KEYLEDGER_LOG_LEVEL",
    }
    assert not any("a-secret" in line for line in lines)


def test_a_file_that_can_t_be_read(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "KEYLEDGER_KEYS_DATABASE").write_bytes(b"\xff")
    with pytest.raises(SystemExit) as ended:
        load(Settings)
    assert ended.value.code == EX_CONFIG
    assert str(files) in capsys.readouterr().err


def test_without_files_the_environment_is_enough(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.rmdir()
    monkeypatch.setenv("KEYLEDGER_KEYS_DATABASE", DSN)
    monkeypatch.setenv("KEYLEDGER_KAFKA", "kafka:9092")
    assert load(Settings).database == DSN
