"""The published language: every record that any service puts on a Kafka topic, as CloudEvents 1.0 in structured JSON.

An event's name and schema version are its contract; Python paths never leave the process. Changes are additive only,
and consumers ignore fields that they don't know.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict

SPECVERSION = "1.0"
CONTENT_TYPE = ("content-type", b"application/cloudevents+json")
"""The Kafka header by which receivers know that all of the event is in the value (CloudEvents, Kafka binding, 3.3)."""


class EventData(BaseModel):
    """Base of every event's `data`. `TYPE` is the CloudEvents type, `SCHEMA_VERSION` grows with each additive change."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    TYPE: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class NewEvent:
    """An event that a command leads to. `private` goes into the log beside it, and to no topic of events: a key's hash."""

    data: EventData
    private: dict[str, Any] | None = None


Data = TypeVar("Data", bound=EventData)


class CloudEvent(BaseModel, Generic[Data]):
    """The envelope (CloudEvents 1.0, JSON format); extension attributes are lower-case letters, as the specification asks.

    `position` and `epoch` place the event in its service's log, `streamversion` in its stream; records without a log
    of a service behind them (request events, heartbeats) leave out what they don't have.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: str = SPECVERSION
    id: str
    source: str
    type: str
    time: datetime
    subject: str | None = None
    datacontenttype: str = "application/json"
    schemaversion: int = 1
    epoch: int | None = None
    position: int | None = None
    streamversion: int | None = None
    actor: str | None = None
    reason: str | None = None
    requestid: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    data: Data

    def encode(self) -> bytes:
        """The JSON text of the event, without attributes that are absent; `data` keeps its nulls."""
        attributes = self.model_dump(mode="json", exclude={"data"}, exclude_none=True)
        return msgspec.json.encode(attributes | {"data": self.data.model_dump(mode="json")})
