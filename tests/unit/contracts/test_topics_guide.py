"""The guide to the topics speaks of all of them, and grants what the code needs and no more."""

from __future__ import annotations

import re

import pytest

from deploy.contracts.__main__ import ROOT
from deploy.contracts.asyncapi import CHANNELS, Channel, key_pattern
from services.keys.worker import PUBLICATION as KEYS
from services.tickets.worker import PUBLICATION as TICKETS
from services.usage.worker import SOURCE as USAGE

GUIDE = (ROOT / "docs" / "topics.md").read_text()
GRANTS = [line for line in GUIDE.splitlines() if line.startswith("acls ")]


def granted(words: str, pattern: str) -> set[str]:
    """What `pattern` finds in the grants that have these words."""
    return {found for line in GRANTS if words in line for found in re.findall(pattern, line)}


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.topic.name)
def test_the_table_says_who_writes_and_who_may_read(channel: Channel) -> None:
    [row] = re.findall(rf"^\| `{channel.topic.name}` \|.*$", GUIDE, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[6] == channel.sender
    assert cells[7].startswith("**nothing**" if channel.private else "read")
    days = int(channel.topic.config.get("retention.ms", "0")) // 86_400_000
    assert ("last of each key", "for ever", f"{days} days")[(days != 0) + (days > 0)] == cells[5]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.topic.name)
def test_the_table_names_the_keys_of_all_records(channel: Channel) -> None:
    [row] = re.findall(rf"^\| `{channel.topic.name}` \|.*$", GUIDE, re.MULTILINE)
    cell = row.split("|")[2].replace("edge id", "`<edge id>`")
    keys = [re.sub("<(log|edge) id>", "0" * 32, key).replace("<partition>", "5") for key in re.findall("`(.+?)`", cell)]
    for event in channel.events:
        assert any(re.search(key_pattern(channel, event), key) for key in keys), (event.TYPE, keys)


def test_each_topic_is_written_by_its_service_and_by_nobody_else() -> None:
    for channel in CHANNELS:
        assert granted(f"--topic {channel.topic.name}", r"User:(\S+) --producer") == {f"keyledger-{channel.sender}"}


def test_nobody_but_keys_and_the_edges_reads_the_hashes() -> None:
    assert granted("--topic key-states", r"User:(\S+)") == {"keyledger-keys", "keyledger-edge"}


def test_each_transactional_id_is_its_services() -> None:
    for service, source in {"keys": KEYS.source, "tickets": TICKETS.source, "usage": USAGE}.items():
        assert granted(f"--transactional-id {source}", r"User:(\S+)") == {f"keyledger-{service}"}
    assert granted("", r"--transactional-id (\S+)") == {KEYS.source, TICKETS.source, USAGE}
