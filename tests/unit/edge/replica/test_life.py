"""When the replica may be read, and what becomes of it: restarts, boots, damage, reloads, crashes in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.edge.replica import reader as replica
from services.edge.replica import writer as replica_writer
from services.edge.replica.files import environments
from services.edge.replica.reader import NOTHING, ReplicaReader, ReplicaUnreadableError
from services.edge.replica.readiness import Beat
from services.edge.replica.writer import ReplicaWriter
from shared.settings import PartitionsChanged
from tests.support.eventually import eventually_sync
from tests.unit.edge.states import NOW, apply, beat, found, hash_of, key

PARTITIONS = 2


@pytest.fixture
def writer(tmp_path: Path) -> ReplicaWriter:
    return ReplicaWriter.open(tmp_path, partitions=PARTITIONS)


@pytest.fixture
def reader(tmp_path: Path, writer: ReplicaWriter) -> ReplicaReader:
    return ReplicaReader(tmp_path)


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
    apply(writer, key(7, "a"))
    writer.close()
    with pytest.raises(PartitionsChanged, match="has 3 partitions, the replica was made for 2"):
        ReplicaWriter.open(tmp_path, partitions=3)
    ReplicaWriter.open(tmp_path, partitions=2)


def test_a_replica_that_was_begun_with_a_wrong_setting_is_no_hindrance(tmp_path: Path, writer: ReplicaWriter) -> None:
    writer.close()
    assert ReplicaWriter.open(tmp_path, partitions=3).meta.partitions == 3


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


def test_a_reader_that_was_not_told_of_another_environment_finds_it(
    tmp_path: Path, writer: ReplicaWriter, reader: ReplicaReader
) -> None:
    """The one that it reads was damaged, so that nobody could write into it that it was replaced."""
    apply(writer, key(7, "a"))
    assert found(reader, "a") == (7, 1, "active")
    other = writer.renew()
    apply(other, key(7, "a", version=2, status="revoked"))
    other.declare(ready=True)
    (tmp_path / "current").write_text("2")
    eventually_sync(lambda: reader.status().ready)
    assert found(reader, "a") == (7, 2, "revoked")
