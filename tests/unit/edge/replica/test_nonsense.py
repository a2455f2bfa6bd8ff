"""Records of `key-states` that make no sense: whoever they name is refused, nobody else, and nothing fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge.domain import KeyState, Outcome, decide
from services.edge.domain import OwnerState as OwnerTwin
from services.edge.replica.reader import ReplicaReader
from services.edge.replica.states import Unreadable, parse
from services.edge.replica.writer import ReplicaWriter, StateBatch
from tests.unit.edge.states import NOW, apply, hash_of, key, outcome, owner

PARTITIONS = 2


@pytest.fixture
def writer(tmp_path: Path) -> ReplicaWriter:
    return ReplicaWriter.open(tmp_path, partitions=PARTITIONS)


@pytest.fixture
def reader(tmp_path: Path, writer: ReplicaWriter) -> ReplicaReader:
    return ReplicaReader(tmp_path)


NONSENSE = [
    b"",
    b"{}",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'{"type":"key.state"}',
    b'{"type":"key.state","epoch":1,"streamversion":2,"data":{}}',
    b"[" * 100_000,
    key(8)[1] or b"",
    owner(7)[1] or b"",
    (key(7, version=2)[1] or b"") + b"x",
]


@pytest.mark.parametrize("value", NONSENSE)
def test_a_key_whose_record_makes_no_sense_is_refused_until_one_does(
    writer: ReplicaWriter, reader: ReplicaReader, value: bytes
) -> None:
    apply(writer, owner(3), key(7, "a"), (b"key-7", value), key(8, "b"))
    assert writer.malformed == 1
    assert outcome(reader, "a") is Outcome.not_ready
    assert outcome(reader, "b") is Outcome.allowed
    assert writer.meta.held == (3, 0)
    apply(writer, key(7, "a", version=1))
    assert outcome(reader, "a") is Outcome.not_ready
    apply(writer, key(7, "a", version=2))
    assert outcome(reader, "a") is Outcome.allowed


def test_reading_nonsense_twice_changes_nothing_more(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, owner(3), key(7, "a"), (b"key-7", b"x"), (b"key-7", b"x"), (b"key-7", b"x"))
    apply(writer, key(7, "a", version=2))
    assert outcome(reader, "a") is Outcome.allowed


def test_nonsense_that_is_known_to_be_old_is_passed_over(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, owner(3), key(7, "a", version=5), (b"key-7", b'{"subject":"key-7","epoch":1,"streamversion":4}'))
    assert (outcome(reader, "a"), writer.malformed) == (Outcome.allowed, 1)


def test_a_state_that_was_sent_broken_can_be_sent_again_whole(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, owner(3), key(7, "a"), (b"key-7", b'{"subject":"key-7","epoch":1,"streamversion":9}'))
    apply(writer, key(7, "a", version=8))
    assert outcome(reader, "a") is Outcome.not_ready
    apply(writer, key(7, "a", version=9))
    assert outcome(reader, "a") is Outcome.allowed


def test_an_owner_whose_record_makes_no_sense_has_its_keys_refused(
    writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    apply(writer, owner(3), key(7, "a"), (b"owner-3", b"?"))
    assert outcome(reader, "a") is Outcome.not_ready
    apply(writer, owner(3, version=2))
    assert outcome(reader, "a") is Outcome.allowed


def test_nonsense_about_a_key_never_seen_is_a_stream_that_is_held(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, (b"key-7", b"?"), (b"owner-3", b"?"))
    assert writer.meta.held == (2, 0)
    apply(writer, key(7, "a"), owner(3))
    assert (outcome(reader, "a"), writer.meta.held) == (Outcome.allowed, (2, 0))


@pytest.mark.parametrize("name", [None, b"", b"key-", b"key-x", b"key--1", b"key-07", b"key-" + b"9" * 19, b"ticket-1"])
def test_a_record_that_names_nothing_is_counted_and_passed_over(writer: ReplicaWriter, name: bytes | None) -> None:
    writer.apply([StateBatch(0, [(name, key(7)[1])], 5)], NOW)
    assert (writer.malformed, writer.meta.held, writer.offsets) == (1, (0, 0), {0: 5})


@given(value=st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
@settings(deadline=None)
def test_no_value_is_too_strange(value: bytes) -> None:
    for name in (b"key-7", b"owner-7", b"beat-7"):
        record = parse(name, value)
        assert record is not None and isinstance(record.value, Unreadable)


@given(data=st.data())
@settings(deadline=None)
def test_one_changed_byte_never_makes_a_key_good_that_was_not(data: st.DataObject) -> None:
    name, value = key(7, "a", version=2, status="revoked")
    assert value is not None
    at = data.draw(st.integers(0, len(value) - 1))
    record = parse(name, value[:at] + data.draw(st.binary(min_size=1, max_size=1)) + value[at + 1 :])
    assert record is not None
    if isinstance(record.value, KeyState):
        owner_state = OwnerTwin(record.value.owner_id, 1, 1, "active")
        judged = decide(record.value, owner_state, hash_of("a"), wall_ns=0, address=None, permission=None)
        assert judged is not Outcome.allowed
