"""docker-compose.yml and the image against the code: settings that exist, all that are needed, the same servers everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from deploy.containers.secrets import make
from deploy.local.kafka import ONE_BROKER, SMALL_MACHINE
from deploy.local.postgres import SETTINGS
from deploy.local.state import SERVICES
from services.edge.settings import EdgeSettings, stop_seconds
from services.keys.settings import Settings as Keys
from services.stats.settings import Settings as Stats
from services.tickets.settings import Settings as Tickets
from services.usage.settings import Settings as Usage
from shared.process import ENDING_SECONDS
from tests.support.containers import kafka_variable

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
CLASSES: list[type[BaseSettings]] = [EdgeSettings, Keys, Stats, Tickets, Usage]
NOT_ON_LOOPBACK = {"listen_addresses", "unix_socket_directories"}


def variables(settings: type[BaseSettings]) -> dict[str, bool]:
    """The variables of a settings class, and whether each is needed."""
    prefix = settings.model_config.get("env_prefix", "")
    return {
        str(field.validation_alias or f"{prefix}{name}").upper(): field.is_required()
        for name, field in settings.model_fields.items()
    }


def given() -> set[str]:
    """What the image and the compose file set."""
    image = (ROOT / "deploy/Dockerfile").read_text()
    return set(re.findall(r"^\s+(KEYLEDGER_\w+):", COMPOSE, re.M)) | set(re.findall(r"\b(KEYLEDGER_\w+)=", image))


def test_every_variable_is_one_that_somebody_reads() -> None:
    known = set().union(*map(variables, CLASSES))
    assert len(given()) > 15
    assert given() - known == set()


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__module__.split(".")[1])
def test_every_variable_that_is_needed_is_set_or_a_secret(settings: type[BaseSettings], tmp_path: Path) -> None:
    for name in ("postgres", "edge", *SERVICES):
        (tmp_path / name).mkdir()
    make(tmp_path)
    secrets = {path.name for path in tmp_path.glob("*/*")}
    assert {name for name, needed in variables(settings).items() if needed} - given() - secrets == set()


def test_kafka_and_postgresql_are_set_as_without_containers() -> None:
    for name, value in (ONE_BROKER | SMALL_MACHINE).items():
        assert re.search(rf'^\s+{kafka_variable(name)}: "?{value}"?$', COMPOSE, re.M), name
    for name, value in SETTINGS.items():
        # fsync is on by default, and a container's addresses are its own.
        assert name in NOT_ON_LOOPBACK | {"fsync"} or f"- -c{name}={value}\n" in COMPOSE, name


def test_secrets_are_made_once_and_what_is_there_stays(tmp_path: Path) -> None:
    for name in ("postgres", "edge", *SERVICES):
        (tmp_path / name).mkdir()
    (tmp_path / "usage" / "KEYLEDGER_USAGE_DATABASE").write_text("postgresql://elsewhere/usage")
    make(tmp_path)
    before = {path: path.read_text() for path in tmp_path.glob("*/*")}
    assert before[tmp_path / "usage" / "KEYLEDGER_USAGE_DATABASE"] == "postgresql://elsewhere/usage"
    password = before[tmp_path / "postgres" / "keys"].strip()
    assert before[tmp_path / "keys" / "KEYLEDGER_KEYS_DATABASE"] == f"postgresql://keys:{password}@postgres:5432/keys\n"
    assert (tmp_path / "edge" / "identity.pem").stat().st_mode & 0o777 == 0o600
    make(tmp_path)
    assert {path: path.read_text() for path in tmp_path.glob("*/*")} == before


def grace_seconds(section: str) -> int:
    found = re.search(r"stop_grace_period: (\d+)s", COMPOSE.partition(f"\n{section}:")[2])
    assert found is not None
    return int(found[1])


def test_processes_have_the_time_to_end_that_they_may_take() -> None:
    edge = EdgeSettings.model_fields
    assert grace_seconds("  edge") >= stop_seconds(edge["leave_seconds"].default, edge["drain_seconds"].default)
    assert grace_seconds("x-process") > ENDING_SECONDS
