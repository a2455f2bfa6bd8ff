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
_JSON = "application/json"


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
    datacontenttype: str = _JSON
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
        """The JSON text of the event."""
        own = self.model_dump(mode="json", exclude={"specversion", "type", "datacontenttype", "schemaversion", "data"})
        return encode(self.type, self.schemaversion, self.data.model_dump(mode="json"), **own)


def encode(kind: str, schemaversion: int, data: Any, **attributes: Any) -> bytes:
    """The JSON text of a `CloudEvent`, without its checks: `data` is whatever msgspec encodes.

    Attributes that are None are left out; `data` keeps its nulls.
    """
    always = {"specversion": SPECVERSION, "type": kind, "datacontenttype": _JSON, "schemaversion": schemaversion}
    given = {name: value for name, value in attributes.items() if value is not None}
    return msgspec.json.encode(always | given | {"data": data})
