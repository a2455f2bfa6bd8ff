"""One AsyncAPI document of all topics: what lies in each, by which key, for how long, and who may read it.

Payloads refer to the JSON Schemas beside it, which say what a record's whole value is: a CloudEvent in JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from shared.events import CONTENT_TYPE, EventData, keys, requests, tickets
from shared.events.schemas import file_name, schema_of
from shared.events.topics import (
    EDGE_STATUS,
    KEY_EVENTS,
    KEY_STATES,
    KEY_USAGE,
    REQUEST_EVENTS,
    TICKET_EVENTS,
    USAGE_MARKS,
    Topic,
)
from shared.settings import Base

Object = dict[str, Any]

_LOG = "^[0-9a-f]{32}$"
_HEADERS = ("source", "sequence", "previous")
_ABOUT = """\
Values are CloudEvents 1.0 in structured JSON. Schemas only grow: ignore fields and types that you don't know. Read
committed records only (`isolation.level=read_committed`). Any record may come again: how to drop duplicates is in each
topic's description, and `docs/topics.md` has the whole guide.\
"""


@dataclass(frozen=True)
class Channel:
    """A topic as others see it. `key`: the pattern of its records' keys; `private`: only the platform may read it."""

    topic: Topic
    sender: str
    key: str
    events: Sequence[type[EventData]]
    about: str
    private: bool = False


_STREAM = "In order within a key. Drop what has a `streamversion` that you have had of its `subject`; it grows by one."
CHANNELS = (
    Channel(
        KEY_EVENTS, "keys", "^(key|owner)-[1-9][0-9]*$", keys.EVENTS, f"What happened to keys and owners. {_STREAM}"
    ),
    Channel(TICKET_EVENTS, "tickets", "^ticket-[1-9][0-9]*$", tickets.EVENTS, f"What happened to tickets. {_STREAM}"),
    Channel(
        REQUEST_EVENTS,
        "edge",
        "^key-[1-9][0-9]*$",
        (requests.RequestMetered, requests.LogClosed),
        "One record for each metered answer. In order within `source` (a request log) and partition, unless records were"
        " sent again. Drop what has an `id` that you have had. `log.closed`, keyed by the log, goes to every partition.",
    ),
    Channel(
        KEY_USAGE,
        "usage",
        "^key-[1-9][0-9]*$",
        (requests.KeyUsage,),
        "Each key's calls so far, at most once a second a key. Keep the record with the greater (`epoch`, `usage_count`).",
    ),
    Channel(
        KEY_STATES,
        "keys",
        "^((key|owner)-[1-9][0-9]*|beat-[0-9]+)$",
        keys.STATES,
        "The whole state of each key, with its hashes, for the edges. Keep the record with the greater (`epoch`,"
        " `streamversion`); each partition ends with a heartbeat.",
        private=True,
    ),
    Channel(
        USAGE_MARKS,
        "usage",
        "^[0-9a-f]{32}/[0-9]+$",
        (requests.UsageMark,),
        "What the usage service has stored of each request log, for the edges: they delete what is covered.",
    ),
    Channel(
        EDGE_STATUS,
        "edge",
        "^[0-9a-f]{32}$",
        (requests.EdgeStatus,),
        "What each edge has applied of `key-states`, each second and after each change.",
    ),
)


def document() -> Object:
    """The document (AsyncAPI 3.0)."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Keyledger topics",
            "version": version("keyledger"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": CONTENT_TYPE[1].decode(),
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "description": "`KEYLEDGER_KAFKA` in the directory of a local stack's `env`.",
                "variables": {"bootstrap": {"default": "127.0.0.1:9092"}},
            }
        },
        "channels": {channel.topic.name: _channel(channel) for channel in CHANNELS},
        "operations": {f"send-{channel.topic.name}": _operation(channel) for channel in CHANNELS},
        "components": {
            "messages": {event.TYPE: _message(channel, event) for channel in CHANNELS for event in channel.events}
        },
    }


def _channel(channel: Channel) -> Object:
    readers = "Only the platform may read it." if channel.private else "Others may read it."
    return {
        "address": channel.topic.name,
        "description": f"{channel.about} {readers} Only the platform's own services may write it.",
        "messages": {event.TYPE: {"$ref": f"#/components/messages/{event.TYPE}"} for event in channel.events},
        "bindings": {
            "kafka": {
                "topic": channel.topic.name,
                "partitions": Base.model_fields["partitions"].default,
                "replicas": Base.model_fields["replication"].default,
                "topicConfiguration": {name: _typed(name, value) for name, value in channel.topic.config.items()},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _typed(name: str, value: str) -> Any:
    if name == "cleanup.policy":
        return value.split(",")
    return int(value) if value.lstrip("-").isdigit() else float(value)


def _operation(channel: Channel) -> Object:
    at = f"#/channels/{channel.topic.name}"
    return {
        "action": "send",
        "channel": {"$ref": at},
        "summary": f"Written by the {channel.sender} service.",
        "messages": [{"$ref": f"{at}/messages/{event.TYPE}"} for event in channel.events],
    }


def _message(channel: Channel, event: type[EventData]) -> Object:
    found = {
        "name": event.TYPE,
        "title": f"{event.TYPE}, schema version {event.SCHEMA_VERSION}",
        "summary": schema_of(event)["description"],
        "payload": {"$ref": f"./{file_name(event)}"},
    }
    name, value = CONTENT_TYPE
    headers: Object = {name: {"type": "string", "const": value.decode()}}
    if channel.topic is REQUEST_EVENTS:
        headers |= {name: {"type": "string", "description": f"As in the value: `{name}`."} for name in _HEADERS}
    found["headers"] = {"type": "object", "required": list(headers), "properties": headers}
    key = {"type": "string", "pattern": key_pattern(channel, event)}
    found["bindings"] = {"kafka": {"key": key, "bindingVersion": "0.5.0"}}
    return found


def key_pattern(channel: Channel, event: type[EventData]) -> str:
    """What the keys of the event's records look like in this topic."""
    return _LOG if event is requests.LogClosed else channel.key
