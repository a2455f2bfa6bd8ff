"""Request events, on `request-events`, and what the usage service and the edge tell of them and of themselves.

These are on the hot path: `RequestMetered` is the contract, and the msgspec structs at the end are what the code
encodes and decodes. A test holds the two against each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from shared.events import EventData

Decision = Literal[
    "allowed",
    "rate_limited",
    "inactive",
    "owner_suspended",
    "forbidden",
    "address_refused",
    "revoked",
    "deleted",
    "expired",
]
Via = Literal["proxy", "authz", "session"]
_CALLS_VIA: frozenset[str] = frozenset({"proxy", "authz"})


class RequestMetered(EventData):
    """One answer to a request whose key is known. The envelope's `source` is the log id, its `time` that of admission.

    `sequence` is the ordinal in that log, `previous` the ordinal of the log's record before it in the same partition
    (-1: none): by these two every consumer counts the event exactly once. `response_time` is in seconds until the
    response's head; `endpoint` the path without its query.
    """

    TYPE: ClassVar[str] = "request.metered"
    sequence: int
    previous: int
    edge: str
    key_id: int
    key_version: int
    owner_id: int
    endpoint: str
    route: str
    method: str
    status_code: int
    response_time: float
    decision: Decision
    via: Via
    request_id: str
    correlation_id: str | None
    client_address: str | None


class LogClosed(EventData):
    """The last record of a request log, in every partition: its process has ended and all its records were sent before."""

    TYPE: ClassVar[str] = "log.closed"
    sequence: int
    previous: int
    edge: str


class KeyUsage(EventData):
    """A key's calls so far and the time of the last (null: none). Of two records of one epoch the greater count is the newer."""

    TYPE: ClassVar[str] = "key.usage"
    key_id: int
    owner_id: int
    usage_count: int
    last_used: datetime | None


class UsageMark(EventData):
    """What the usage service has stored of one request log in one partition.

    Everything up to `mark` but the open gaps ((low, high]: records not yet seen) is stored; `next_offset` is the
    partition's offset up to which records were taken. `closed`: all of the log, in every partition, is stored.
    """

    TYPE: ClassVar[str] = "usage.mark"
    log: str
    partition: int
    mark: int
    gaps: tuple[tuple[int, int], ...]
    next_offset: int
    closed: bool


class EdgeStatus(EventData):
    """What an edge has applied, by partition of `key-states` (its heartbeats' positions, of the envelope's epoch).

    `freshness` is the age of the oldest partition's last heartbeat in seconds, null before the first.
    """

    TYPE: ClassVar[str] = "edge.status"
    edge: str
    status: Literal["live", "stopped", "retired"]
    ready: bool
    applied: dict[int, int]
    freshness: float | None


EVENTS: tuple[type[EventData], ...] = (RequestMetered, LogClosed, KeyUsage, UsageMark, EdgeStatus)


_Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_LONGEST = 366 * 86_400  # seconds


class Request(msgspec.Struct, frozen=True, gc=False):
    """`RequestMetered` (or, with only the first three fields set, `LogClosed`) as the hot path decodes it.

    Its bounds are checked in decoding: beyond them is what no edge can have written, and no table can hold.
    """

    sequence: _Natural
    previous: Annotated[int, Meta(ge=-1, le=2**63 - 1)]
    edge: str
    key_id: _Natural = 0
    key_version: _Natural = 0
    owner_id: _Natural = 0
    endpoint: str = ""
    route: str = ""
    method: str = ""
    status_code: Annotated[int, Meta(ge=0, le=999)] = 0
    response_time: Annotated[float, Meta(ge=0, lt=_LONGEST)] = 0.0
    decision: str = ""
    via: str = ""
    request_id: str = ""
    correlation_id: str | None = None
    client_address: str | None = None

    @property
    def is_call(self) -> bool:
        """A call is a request that was let through, by the proxy or for another one (authz); a session's is none."""
        return self.decision == "allowed" and self.via in _CALLS_VIA


class RequestEvent(msgspec.Struct, frozen=True, gc=False):
    """A record of `request-events` as the hot path encodes and decodes it."""

    id: str
    source: str
    type: str
    time: Annotated[datetime, Meta(tz=True)]
    data: Request
    subject: str | None = None
    specversion: str = "1.0"
    datacontenttype: str = "application/json"
    schemaversion: int = 1


encode_request = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(RequestEvent).decode
