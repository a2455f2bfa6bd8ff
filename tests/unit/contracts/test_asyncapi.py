"""The committed description of the topics: all of them, each event once, as the code makes and keys its records."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from deploy.contracts.__main__ import DIRECTORY
from deploy.contracts.asyncapi import CHANNELS
from services.keys.worker import PUBLICATION as KEYS
from services.tickets.worker import PUBLICATION as TICKETS
from shared.events import CONTENT_TYPE, topics
from shared.events.schemas import ALL
from shared.events.topics import Topic

API: dict[str, Any] = json.loads((DIRECTORY / "asyncapi.json").read_text())
TOPICS = [topic for topic in vars(topics).values() if isinstance(topic, Topic)]


def test_every_topic_is_a_channel_with_its_configuration() -> None:
    assert set(API["channels"]) == {topic.name for topic in TOPICS}
    for topic in TOPICS:
        kafka = API["channels"][topic.name]["bindings"]["kafka"]
        assert kafka["topic"] == API["channels"][topic.name]["address"] == topic.name
        shown = kafka["topicConfiguration"]
        assert {name: ",".join(v) if isinstance(v, list) else str(v) for name, v in shown.items()} == topic.config


def test_every_event_is_in_one_channel_and_has_its_schema() -> None:
    counted = Counter(name for channel in API["channels"].values() for name in channel["messages"])
    assert counted == Counter(event.TYPE for event in ALL)
    for message in API["components"]["messages"].values():
        schema = json.loads((DIRECTORY / message["payload"]["$ref"]).read_text())
        assert schema["properties"]["type"]["const"] == message["name"]


def test_every_reference_leads_somewhere() -> None:
    def follow(part: Any) -> None:
        match part:
            case {"$ref": str(reference)} if reference.startswith("#/"):
                found = API
                for name in reference.split("/")[1:]:
                    found = found[name]
            case dict():
                for each in part.values():
                    follow(each)
            case list():
                for each in part:
                    follow(each)

    follow(API)


def test_only_the_states_with_their_hashes_are_private() -> None:
    assert [channel.topic.name for channel in CHANNELS if channel.private] == ["key-states"]


def test_every_record_says_what_it_is_in_a_header() -> None:
    assert API["defaultContentType"] == CONTENT_TYPE[1].decode()
    for message in API["components"]["messages"].values():
        headers = message["headers"]
        assert headers["properties"]["content-type"]["const"] == API["defaultContentType"]
        assert headers["required"] == list(headers["properties"])


@pytest.mark.parametrize("publication", [KEYS, TICKETS], ids=lambda publication: publication.source)
def test_a_relays_topics_are_said_to_be_its_own(publication: Any) -> None:
    senders = {channel.topic.name: channel.sender for channel in CHANNELS}
    assert {senders[topic.name] for topic in publication.topics} == {publication.source.rsplit("/", 1)[1]}


@pytest.mark.parametrize(
    ("topic", "key"),
    [
        ("key-events", "key-7"),
        ("key-events", "owner-12"),
        ("key-states", "beat-0"),
        ("ticket-events", "ticket-7"),
        ("usage-marks", f"{'0' * 32}/5"),
        ("edge-status", "e" * 32),
    ],
)
def test_the_patterns_of_keys_are_those_of_records(topic: str, key: str) -> None:
    for name in API["channels"][topic]["messages"]:
        assert re.search(API["components"]["messages"][name]["bindings"]["kafka"]["key"]["pattern"], key)
