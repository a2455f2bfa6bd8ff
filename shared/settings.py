"""What every process reads from its environment and from files of secrets, and how wrong settings end a process: at once,
with all errors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from typing_extensions import override

EX_CONFIG = 78  # sysexits.h

SECRETS = Path("/run/secrets")
"""Where containers have their secrets: any setting may be a file here that is named after its variable."""


class WrongSettings(Exception):  # noqa: N818 - a state, not a mistake of the code
    """What the settings say can't be: no restart will mend it. The text is for who set them."""


class PartitionsChanged(WrongSettings):
    """A topic, or the edge's replica of one, has another number of partitions than the settings say; it is fixed for ever."""

    @override
    def __str__(self) -> str:
        return f"KEYLEDGER_PARTITIONS: {super().__str__()}"


Port = Annotated[int, Field(ge=0, le=65535)]


class Base(BaseSettings):
    """Settings of every process. Subclasses add a prefix for their own fields; these are read without it."""

    model_config = SettingsConfigDict(env_prefix="KEYLEDGER_", extra="ignore", frozen=True, populate_by_name=True)

    kafka: str = Field(
        validation_alias="KEYLEDGER_KAFKA",
        pattern=r"^[^\s,:]+:\d+(,[^\s,:]+:\d+)*$",
        description="Kafka's bootstrap servers: host:port, separated by commas.",
    )
    log_level: str = Field(
        default="info",
        validation_alias="KEYLEDGER_LOG_LEVEL",
        pattern="^(debug|info|warning|error)$",
        description="The least level that is logged: debug, info, warning or error.",
    )
    internal_host: str = Field(
        default="127.0.0.1",
        validation_alias="KEYLEDGER_INTERNAL_HOST",
        description="Where /livez, /readyz and /metrics of this process listen.",
    )
    internal_port: Port = Field(
        default=0,
        validation_alias="KEYLEDGER_INTERNAL_PORT",
        description="The port of /livez, /readyz and /metrics; 0 takes any that is free.",
    )
    leave_seconds: float = Field(
        default=0,
        validation_alias="KEYLEDGER_LEAVE_SECONDS",
        ge=0,
        description="Seconds after SIGTERM in which /readyz says 503 and requests are still taken, for load balancers to see it.",
    )
    partitions: int = Field(
        default=6,
        validation_alias="KEYLEDGER_PARTITIONS",
        ge=1,
        le=1000,
        description="Partitions of each topic, fixed when the topic is made.",
    )
    replication: int = Field(
        default=1, validation_alias="KEYLEDGER_REPLICATION", ge=1, le=9, description="Copies of each partition."
    )
    min_insync_replicas: int = Field(
        default=1,
        validation_alias="KEYLEDGER_MIN_INSYNC_REPLICAS",
        ge=1,
        le=9,
        description="Copies that must have a record before it counts as written.",
    )

    @property
    def internal(self) -> tuple[str, int]:
        """Host and port of /livez, /readyz and /metrics."""
        return self.internal_host, self.internal_port


class ServiceSettings(Base):
    """Settings of a service with a database and an HTTP API behind the edge."""

    database: str = Field(pattern=r"^postgres(ql)?://", description="The service's PostgreSQL database, as a URL.")
    host: str = Field(default="127.0.0.1", description="The address on which the API listens.")
    port: Port = Field(default=0, description="The port on which the API listens.")
    identity_public_keys: Path | None = Field(
        default=None,
        validation_alias="KEYLEDGER_IDENTITY_PUBLIC_KEYS",
        description="A PEM file with the Ed25519 public keys whose identity tokens are accepted; two during a rotation.",
    )


S = TypeVar("S", bound=Base)


def load(settings: type[S]) -> S:
    """The settings from the environment, or else from files in `SECRETS`; every error on standard error and exit status 78
    when they are wrong."""
    try:
        return settings(_secrets_dir=SECRETS if SECRETS.is_dir() else None)  # type: ignore[call-arg]
    except ValidationError as error:
        # Values are not shown: some are secret.
        for problem in error.errors(include_input=False):
            name = variable(settings, str(problem["loc"][0]))
            meaning = (variables(settings)[name].description or "").rstrip(".")
            what = "is not set" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"{name} ({meaning}): {what}\n")
    except SettingsError as error:
        sys.stderr.write(f"{SECRETS}: {error}: {error.__cause__}\n")
    raise SystemExit(EX_CONFIG)


def variables(settings: type[Base]) -> dict[str, FieldInfo]:
    """The environment variables that the class reads, with their fields."""
    return {
        str(field.validation_alias or variable(settings, name)): field for name, field in settings.model_fields.items()
    }


def variable(settings: type[Base], name: str) -> str:
    """The environment variable of a field, by the field's name or by the variable's own."""
    return name if name.isupper() else f"{settings.model_config.get('env_prefix', '')}{name}".upper()


def is_given(variable: str) -> bool:
    """Whether the environment, or a file of secrets, has the variable."""
    return variable in os.environ or (SECRETS / variable).is_file()
