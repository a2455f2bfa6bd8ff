"""What the edge's processes read from their environment, and where they keep their files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.edge import compiled, identity
from services.edge.compiled import Form
from services.edge.routes import BODY_MAX, TIMEOUT_SECONDS, Origin, RoutesError, Table, parse, platform
from shared.settings import Base, Port


def _routes(path: Path) -> Path:
    try:
        parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"can't be read: {error}") from None
    except RoutesError as error:
        raise ValueError(f"{path} can't be used:{error}") from None
    return path


def _identity_key(path: Path) -> Path:
    try:
        identity.load_key(path)
    except identity.IdentityKeyError as error:
        raise ValueError(str(error)) from None
    return path


def _form(form: Form) -> Form:
    if form == "compiled" and not compiled.RUNS:
        raise ValueError(f"what would run is {compiled.describe()}")
    return form


STOP_SECONDS = 5.0
"""What a serving process may take to stop besides its drain; an agent, which ships what is left, twice that."""

DRAIN_SECONDS = 10.0


def stop_seconds(leave: float, drain: float) -> float:
    """What an edge takes to stop at most, for who ends it: the serving process, then the agent, then the parent."""
    return leave + drain + 4 * STOP_SECONDS


class EdgeSettings(Base):
    """Settings of the parent, the serving process and the agent alike."""

    model_config = SettingsConfigDict(env_prefix="KEYLEDGER_EDGE_", extra="ignore", frozen=True, populate_by_name=True)

    host: str = Field(default="127.0.0.1", description="The address on which clients are served.")
    port: Port = Field(default=8080, description="The port on which clients are served; 0 takes any that is free.")
    data: Path = Field(description="The directory of the replica and the request logs; one edge's own.")
    identity_key: Annotated[Path, AfterValidator(_identity_key)] = Field(
        description="A PEM file with the Ed25519 private key that signs identity tokens."
    )
    routes: Annotated[Path, AfterValidator(_routes)] | None = Field(
        default=None, description="A TOML file of routes to upstreams of your own."
    )
    keys_url: Origin = Field(description="The keys API, scheme://host:port.")
    tickets_url: Origin = Field(description="The tickets API, scheme://host:port.")
    stats_url: Origin = Field(description="The stats API, scheme://host:port.")

    form: Annotated[Form, AfterValidator(_form)] = Field(
        default="best",
        description="Which form of the code runs: `plain` Python, `compiled`, or the `best` that there is.",
    )
    mode: Literal["availability", "strict"] = Field(
        default="availability", description="Cut off from Kafka: go on with the keys held, or refuse all after a while."
    )
    stale_seconds: float = Field(default=5, gt=0, description="Without a heartbeat for so long the replica is stale.")
    strict_seconds: float = Field(default=60, gt=0, description="In strict mode all is refused when so long stale.")
    alone_seconds: float = Field(
        default=3, gt=0, description="At the start, Kafka is waited for so long before the replica serves as it was."
    )
    keep_seconds: float = Field(
        default=60, ge=0, description="Request log segments are kept for so long after the usage service has them."
    )
    disk_budget: int = Field(
        default=0,
        ge=0,
        description="Bytes that the request logs may take; 0: what the disk has but for a reserve. Used up, requests get "
        "503; at 80 % segments go that Kafka acknowledged 10 minutes ago, though the usage service has not stored them.",
    )
    log_client_address: bool = Field(default=True, description="Whether request events carry the client's address.")
    sync_interval: float = Field(
        default=0.05, ge=0, description="Seconds between syncs of the request log to disk; 0 syncs before each answer."
    )

    body_max: int = Field(default=BODY_MAX, ge=0, description="Bytes of a request's body, where a route says nothing.")
    head_seconds: float = Field(default=10, gt=0, description="For a request's head, from its first byte.")
    idle_seconds: float = Field(default=60, gt=0, description="Between two requests of a connection.")
    body_idle_seconds: float = Field(default=60, gt=0, description="Without a byte of a body, in either direction.")
    body_rate: int = Field(
        default=1024,
        ge=1,
        le=1_000_000_000,
        description="Bytes a second of a request's body; who sends fewer uses up `body_idle_seconds`.",
    )
    pressed_seconds: float = Field(
        default=2,
        gt=0,
        description="For a client that keeps others waiting: for its connection, or for the upstream's that it uses.",
    )
    connect_seconds: float = Field(default=2, gt=0, description="For a connection to an upstream.")
    response_seconds: float = Field(
        default=TIMEOUT_SECONDS, gt=0, description="For a response's head, where a route says nothing."
    )
    drain_seconds: float = Field(default=DRAIN_SECONDS, ge=0, description="For requests in flight after SIGTERM.")
    connections_max: int = Field(
        default=10_000, ge=1, description="Connections of clients; more are answered with 503."
    )
    open_requests: int = Field(
        default=128, ge=1, description="Requests of one key under way at a time; more are answered with 429."
    )
    held_max: int = Field(
        default=256 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of requests and answers that may wait in memory; beyond, those that waited longest end.",
    )
    upstream_connections: int = Field(default=256, ge=1, description="Connections to one upstream at most.")
    upstream_idle_seconds: float = Field(
        default=4,
        gt=0,
        description="An unused connection to an upstream is closed after; less than the upstream's own.",
    )

    session: str = Field(default="", description="This run of the edge; its parent says so to its children.")
    socket: int | None = Field(default=None, description="The listening socket that the parent opened.")
    parent: int | None = Field(default=None, description="The parent's process id.")

    @property
    def serving_stop_seconds(self) -> float:
        """A serving process has ended so long after SIGTERM: it drains, and then writes what it cut off."""
        return self.drain_seconds + STOP_SECONDS

    @property
    def stop_seconds(self) -> float:
        """The whole edge has ended so long after SIGTERM."""
        return stop_seconds(self.leave_seconds, self.drain_seconds)

    @property
    def edge_id_path(self) -> Path:
        """The file that holds the edge's id."""
        return self.data / "edge-id"

    @property
    def replica_path(self) -> Path:
        """The directory of the replica."""
        return self.data / "replica"

    @property
    def logs_path(self) -> Path:
        """The directory of the request logs."""
        return self.data / "logs"

    @property
    def slots_path(self) -> Path:
        """The directory of the locks that say which serving process may admit."""
        return self.data / "slots"

    def table(self) -> Table:
        """All routes: the platform's and the operator's."""
        origins = {"keys": self.keys_url, "tickets": self.tickets_url, "stats": self.stats_url}
        found = platform(origins, self.body_max, self.response_seconds)
        if self.routes is not None:
            found += parse(self.routes.read_text(), self.body_max, self.response_seconds)
        return Table(found)

    def edge_id(self) -> str:
        """The edge's id (32 hex digits), which the parent has made before its children start."""
        return self.edge_id_path.read_text().strip()
