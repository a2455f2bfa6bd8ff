"""The replica: the newest state of each key and owner, found by hash, with the offsets that it stands at."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.edge import replica, replica_writer
from services.edge.domain import KeyState, Outcome, decide
from services.edge.domain import OwnerState as OwnerTwin
from services.edge.readiness import Beat
from services.edge.replica import NOTHING, ReplicaReader, ReplicaUnreadableError
from services.edge.replica_files import environments
from services.edge.replica_states import Unreadable, parse
from services.edge.replica_writer import PartitionsChangedError, ReplicaWriter, StateBatch
from shared.events import keys as published
from tests.unit.edge.states import MOMENT, StateRecord, beat, event, hash_of, key, owner

PARTITIONS = 2
NOW = 10**15


@pytest.fixture
def writer(tmp_path: Path) -> ReplicaWriter:
    return ReplicaWriter.open(tmp_path, partitions=PARTITIONS)


@pytest.fixture
def reader(tmp_path: Path, writer: ReplicaWriter) -> ReplicaReader:
    return ReplicaReader(tmp_path)


def apply(
    writer: ReplicaWriter, *records: StateRecord, partition: int = 0, now: int = NOW, at_end: bool = True
) -> None:
    offset = (writer.offsets.get(partition) or 0) + len(records)
    writer.apply([StateBatch(partition, records, offset, at_end)], now)


def found(reader: ReplicaReader, secret: str) -> tuple[int, int, str] | None:
    """Id, version and status of the key that a secret finds."""
    pair = reader.lookup(hash_of(secret))
    return (pair[0].id, pair[0].version, pair[0].status) if pair else None


def outcome(reader: ReplicaReader, secret: str) -> Outcome:
    key_state, owner_state = reader.lookup(hash_of(secret)) or (None, None)
    return decide(key_state, owner_state, hash_of(secret), wall_ns=0, address=None, permission=None)


def test_a_key_is_found_by_its_hash_with_its_owner(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a"))
    pair = reader.lookup(hash_of("a"))
    assert pair is not None and pair[1] is None
    apply(writer, owner(3))
    pair = reader.lookup(hash_of("a"))
    assert pair is not None
    assert (pair[0].id, pair[0].owner_id, pair[1]) == (7, 3, OwnerTwin(3, 1, 1, "active"))
    assert reader.lookup(hash_of("b")) is None


def test_only_a_newer_state_changes_anything(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a", version=3))
    for older in (key(7, "b", version=3), key(7, "b", version=2), key(7, "b", version=9, epoch=0)):
        apply(writer, older)
        assert found(reader, "a") == (7, 3, "active") and found(reader, "b") is None
    apply(writer, key(7, "b", version=1, epoch=2))
    assert found(reader, "b") == (7, 1, "active") and found(reader, "a") is None


def test_a_hash_that_a_newer_state_no_longer_lists_finds_nothing(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "old"))
    apply(writer, key(7, "old", "new", version=2))
    assert found(reader, "old") == found(reader, "new") == (7, 2, "active")
    apply(writer, key(7, "new", version=3))
    assert found(reader, "old") is None and found(reader, "new") == (7, 3, "active")


def test_revoked_and_deleted_keys_stay_to_be_told_from_unknown_ones(
    writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    apply(writer, owner(3), key(7, "a"), key(8, "b"))
    apply(writer, key(7, "a", version=2, status="revoked"), key(8, "b", version=2, status="deleted"))
    assert (outcome(reader, "a"), outcome(reader, "b")) == (Outcome.revoked, Outcome.deleted)
    assert writer.meta.held == (3, 0)


def test_a_tombstone_removes_the_state_and_its_hashes(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, owner(3), key(7, "a", "b"), key(8, "c"))
    apply(writer, (b"key-7", None), (b"key-9", None), (b"owner-3", None), (b"owner-9", None))
    assert found(reader, "a") is found(reader, "b") is None
    assert reader.lookup(hash_of("c")) is not None and outcome(reader, "c") is Outcome.not_ready
    assert writer.meta.held == (1, 0)


def test_a_hash_claimed_by_another_key_stays_with_it(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a"), key(8, "a"), key(7, "b", version=2))
    assert found(reader, "a") == (8, 1, "active")


def test_streams_are_counted_where_they_lie(writer: ReplicaWriter) -> None:
    apply(writer, key(1), key(2), owner(3), partition=0)
    apply(writer, key(4), key(4, version=2), key(4, version=1), beat(1, 9), partition=1)
    assert writer.meta.held == (3, 1)


def test_all_of_a_state_arrives(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    data = published.KeyState(
        id=7,
        owner_id=3,
        status="inactive",
        permissions=("admin", "read"),
        limits=published.Limits(minute=5, hour=None, day=0),
        expires_at=MOMENT,
        addresses=("10.0.0.0/8",),
        hashes=(published.Hash(hash=hash_of("a").hex(), valid_until=MOMENT), published.Hash(hash=hash_of("b").hex())),
    )
    apply(writer, (b"key-7", event(data, "key-7", version=4, epoch=2)))
    pair = reader.lookup(hash_of("a"))
    assert pair is not None
    moment = int(MOMENT.timestamp()) * 10**9 + 123_456_000
    assert pair[0] == KeyState(
        7,
        3,
        2,
        4,
        "inactive",
        frozenset({"admin", "read"}),
        pair[0].limits,
        moment,
        ("10.0.0.0/8",),
        ((hash_of("a"), moment), (hash_of("b"), None)),
    )
    assert (pair[0].limits.minute, pair[0].limits.hour, pair[0].limits.day) == (5, None, 0)


published_states = st.builds(
    published.KeyState,
    id=st.integers(0, 2**63 - 1),
    owner_id=st.integers(0, 2**63 - 1),
    permissions=st.lists(st.text(max_size=5)).map(tuple),
    limits=st.builds(
        published.Limits, *[], **{name: st.none() | st.integers(0, 10**9) for name in ("minute", "hour", "day")}
    ),
    expires_at=st.none() | st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.timezones()),  # noqa: DTZ001
    addresses=st.lists(st.text(max_size=5)).map(tuple),
    hashes=st.lists(st.builds(published.Hash, hash=st.binary(min_size=32, max_size=32).map(bytes.hex))).map(tuple),
)


@given(data=published_states, version=st.integers(1, 10**9), epoch=st.integers(0, 10**9))
def test_the_fast_twin_says_what_the_published_class_says(data: published.KeyState, version: int, epoch: int) -> None:
    if data.id >= 10**18:
        return
    record = parse(b"key-%d" % data.id, event(data, f"key-{data.id}", version=version, epoch=epoch))
    assert record is not None
    state = record.value
    assert isinstance(state, KeyState)
    assert (state.id, state.owner_id, state.epoch, state.version) == (data.id, data.owner_id, epoch, version)
    assert (state.status, state.permissions, state.addresses) == (data.status, set(data.permissions), data.addresses)
    assert msgspec.structs.asdict(state.limits) == data.limits.model_dump()
    assert [known.hex() for known, _ in state.hashes] == [known.hash for known in data.hashes]
    seconds = None if state.expires_at_ns is None else state.expires_at_ns / 10**9
    assert seconds == (data.expires_at and pytest.approx(data.expires_at.timestamp()))


# Records that make no sense

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
def test_no_value_is_too_strange(value: bytes) -> None:
    for name in (b"key-7", b"owner-7", b"beat-7"):
        record = parse(name, value)
        assert record is not None and isinstance(record.value, Unreadable)


@given(data=st.data())
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


# Any order, any batches


@dataclass
class Model:
    """The newest state by stream, as a dictionary."""

    streams: dict[bytes, tuple[tuple[int, int], str, tuple[str, ...]]] = field(default_factory=dict)

    def take(self, name: bytes, place: tuple[int, int] | None, status: str, secrets: tuple[str, ...]) -> None:
        if place is None:
            self.streams.pop(name, None)
        elif name not in self.streams or place > self.streams[name][0]:
            self.streams[name] = (place, status, secrets)


changes = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.none() | st.tuples(st.integers(0, 2), st.integers(1, 4)),
        st.sampled_from(["active", "inactive", "revoked", "deleted"]),
        st.sets(st.integers(1, 3), min_size=1, max_size=2),
    ),
    max_size=25,
)


@given(changes=changes, cuts=st.lists(st.integers(0, 25), max_size=4), again=st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_the_newest_states_are_held_however_the_records_are_cut_and_repeated(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, tuple[int, int] | None, str, set[int]]],
    cuts: list[int],
    again: int,
) -> None:
    path, model = tmp_path_factory.mktemp("replica"), Model()
    records: list[StateRecord] = []
    for number, place, status, numbers in changes:
        # A hash belongs to one key for ever, so each key has secrets of its own.
        secrets = tuple(f"{number}.{secret}" for secret in sorted(numbers))
        name = b"key-%d" % number
        model.take(name, place, status, secrets)
        epoch, version = place or (0, 0)
        records.append(key(number, *secrets, epoch=epoch, version=version, status=status) if place else (name, None))
    writer, reader = ReplicaWriter.open(path, partitions=1), ReplicaReader(path)
    for first, end in zip([0, *sorted(cuts)], [*sorted(cuts), 25], strict=True):
        apply(writer, *records[first:end])
    if all(place for _, place, *_ in changes):
        apply(writer, *records[:again])
    expected = {
        secret: (int(name[4:]), place[1], status)
        for name, (place, status, secrets) in model.streams.items()
        for secret in secrets
    }
    for number in range(1, 4):
        for secret in range(1, 4):
            name = f"{number}.{secret}"
            assert found(reader, name) == expected.get(name)
    assert writer.meta.held == (len(model.streams),)
    writer.close()
    reader.close()


# Heartbeats and offsets


def test_freshness_is_the_heartbeat_of_the_partition_that_waited_longest(
    writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    apply(writer, beat(0, 0), now=NOW)
    assert reader.status().fresh_ns == 0
    apply(writer, beat(1, 0), partition=1, now=NOW + 5)
    assert reader.status().fresh_ns == NOW
    apply(writer, beat(0, 0, position=2), now=NOW + 9)
    assert reader.status().fresh_ns == NOW + 5
    assert reader.status().beats == (Beat(1, 2, 0), Beat(1, 1, 0))


def test_a_heartbeat_before_the_end_of_the_partition_is_history(writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, beat(0, 4), at_end=False)
    apply(writer, beat(1, 0), partition=1)
    assert (reader.status().fresh_ns, reader.status().beats[0]) == (0, Beat(1, 1, 4))


def test_a_heartbeat_of_an_older_place_is_passed_over(writer: ReplicaWriter) -> None:
    apply(writer, beat(0, 5, position=9, epoch=2), now=NOW)
    for older in (beat(0, 1, position=8, epoch=2), beat(0, 1, position=99, epoch=1)):
        apply(writer, older, now=NOW + 1)
    assert (writer.meta.beats[0], writer.meta.beat_ns[0]) == (Beat(2, 9, 5), NOW)
    apply(writer, beat(0, 5, position=9, epoch=2), now=NOW + 2)
    assert writer.meta.beat_ns[0] == NOW + 2


def test_offsets_and_all_that_was_found_out_outlive_the_writer(tmp_path: Path, writer: ReplicaWriter) -> None:
    apply(writer, key(7, "a"), owner(3), beat(0, 2))
    writer.declare(complete=True, cluster="cluster-1")
    before = writer.meta
    writer.close()
    again = ReplicaWriter.open(tmp_path, partitions=PARTITIONS)
    assert again.meta == before
    assert (again.offsets, again.meta.cluster, again.meta.complete) == ({0: 3}, "cluster-1", True)
    assert found(ReplicaReader(tmp_path), "a") == (7, 1, "active")


def test_a_batch_that_fails_in_the_middle_has_changed_nothing(
    writer: ReplicaWriter, reader: ReplicaReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(writer, key(7, "a"))
    before = writer.meta

    def broken(_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(replica_writer, "_encode", broken)
    with pytest.raises(MemoryError):
        apply(writer, key(7, "b", version=2), key(8, "c"))
    monkeypatch.undo()
    assert writer.meta == before
    assert found(reader, "a") == (7, 1, "active") and found(reader, "b") is found(reader, "c") is None


# What may be read


def test_before_there_is_a_replica_nothing_is_found_and_then_it_is(tmp_path: Path) -> None:
    reader = ReplicaReader(tmp_path / "replica")
    assert reader.status() == NOTHING and reader.lookup(hash_of("a")) is None
    writer = ReplicaWriter.open(tmp_path / "replica", partitions=1)
    apply(writer, key(7, "a"), beat(0, 1))
    writer.declare(ready=True)
    assert reader.status().ready and found(reader, "a") == (7, 1, "active")


def test_it_is_ready_when_declared_so_and_only_in_that_run_of_the_edge(tmp_path: Path) -> None:
    writer = ReplicaWriter.open(tmp_path, partitions=1, session="first")
    mine, other = ReplicaReader(tmp_path, "first"), ReplicaReader(tmp_path, "second")
    assert not mine.status().ready
    writer.declare(ready=True, complete=True)
    assert mine.status().ready and not other.status().ready
    writer.close()
    writer = ReplicaWriter.open(tmp_path, partitions=1, session="first")
    assert mine.status().ready
    writer.close()
    writer = ReplicaWriter.open(tmp_path, partitions=1, session="second")
    assert not mine.status().ready and not other.status().ready
    assert other.status().complete
    writer.declare(ready=True)
    assert other.status().ready


def test_heartbeats_of_another_boot_say_nothing_of_freshness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ReplicaWriter.open(tmp_path, partitions=1)
    apply(writer, beat(0, 0))
    assert ReplicaReader(tmp_path).status().fresh_ns == NOW
    writer.close()
    for module in (replica, replica_writer):
        monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    assert ReplicaReader(tmp_path).status().fresh_ns == 0
    writer = ReplicaWriter.open(tmp_path, partitions=1)
    assert (writer.meta.beat_ns, writer.meta.beats) == ((0,), (Beat(1, 1, 0),))


def test_a_replica_of_another_number_of_partitions_is_refused(tmp_path: Path, writer: ReplicaWriter) -> None:
    writer.close()
    with pytest.raises(PartitionsChangedError, match="has 3 partitions, the replica was made for 2"):
        ReplicaWriter.open(tmp_path, partitions=3)
    ReplicaWriter.open(tmp_path, partitions=2)


@pytest.mark.parametrize("damage", [b"", b"junk" * 5000, b"\0" * 8192])
def test_a_damaged_replica_is_thrown_away_and_begun_anew(tmp_path: Path, writer: ReplicaWriter, damage: bytes) -> None:
    apply(writer, key(7, "a"))
    writer.declare(ready=True)
    writer.close()
    (environments(tmp_path)[0] / "data.mdb").write_bytes(damage)
    again = ReplicaWriter.open(tmp_path, partitions=PARTITIONS)
    assert (again.offsets, again.meta.ready) == ({}, False)
    reader = ReplicaReader(tmp_path)
    assert reader.status().ready is False and found(reader, "a") is None
    apply(again, key(7, "a"))
    assert found(reader, "a") == (7, 1, "active")


@pytest.mark.parametrize("pointer", [b"", b".", b"..", b"7", b"\xff"])
def test_a_damaged_pointer_is_a_replica_begun_anew(tmp_path: Path, writer: ReplicaWriter, pointer: bytes) -> None:
    writer.close()
    (tmp_path / "current").write_bytes(pointer)
    assert ReplicaReader(tmp_path).status() == NOTHING
    again = ReplicaWriter.open(tmp_path, partitions=PARTITIONS)
    apply(again, key(7, "a"))
    assert found(ReplicaReader(tmp_path), "a") == (7, 1, "active")


def test_a_replica_that_can_not_be_read_is_not_a_key_that_is_unknown(tmp_path: Path, writer: ReplicaWriter) -> None:
    apply(writer, key(7, "a"))
    writer.close()
    (environments(tmp_path)[0] / "data.mdb").write_bytes(b"junk" * 5000)
    reader = ReplicaReader(tmp_path)
    assert reader.status() == NOTHING
    with pytest.raises(ReplicaUnreadableError):
        reader.lookup(hash_of("a"))


# Reloading


def test_readers_follow_to_the_environment_that_takes_its_place(
    tmp_path: Path, writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    apply(writer, key(7, "a"), key(8, "gone"))
    writer.declare(ready=True)
    assert reader.status().ready
    other = writer.renew()
    apply(other, key(7, "b", version=2))
    other.declare(ready=True, complete=True, cluster="cluster-2")
    assert found(reader, "a") == (7, 1, "active")
    writer.swap(other)
    assert reader.status().ready
    assert (found(reader, "a"), found(reader, "gone"), found(reader, "b")) == (None, None, (7, 2, "active"))
    assert (writer.meta.cluster, writer.offsets, writer.meta.held) == ("cluster-2", {0: 1}, (1, 0))
    apply(writer, key(9, "c"))
    assert found(reader, "c") == (9, 1, "active")
    assert len(environments(tmp_path)) == 1


def test_a_reload_that_is_given_up_leaves_nothing(tmp_path: Path, writer: ReplicaWriter, reader: ReplicaReader) -> None:
    apply(writer, key(7, "a"))
    other = writer.renew()
    apply(other, key(8, "b"))
    other.discard()
    assert len(environments(tmp_path)) == 1
    assert found(reader, "a") == (7, 1, "active")


def test_a_crash_during_a_reload_leaves_the_replica_as_it_was(tmp_path: Path, writer: ReplicaWriter) -> None:
    apply(writer, key(7, "a"))
    other = writer.renew()
    apply(other, key(8, "b"))
    other.close()
    writer.close()
    again = ReplicaWriter.open(tmp_path, partitions=PARTITIONS)
    assert again.meta.held == (1, 0) and len(environments(tmp_path)) == 1
    assert found(ReplicaReader(tmp_path), "a") == (7, 1, "active")


def test_a_crash_before_the_readers_were_told_of_the_new_environment_is_made_good(
    tmp_path: Path, writer: ReplicaWriter, reader: ReplicaReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(writer, key(7, "a"))
    assert found(reader, "a") == (7, 1, "active")
    other = writer.renew()
    apply(other, key(7, "b", version=2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ReplicaWriter, "_change", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.swap(other)
    monkeypatch.undo()
    other.close()
    assert found(reader, "a") == (7, 1, "active")
    ReplicaWriter.open(tmp_path, partitions=PARTITIONS)
    reader.status()
    assert found(reader, "b") == (7, 2, "active") and found(reader, "a") is None
