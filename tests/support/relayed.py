"""A relay as a process of its own, publishing the log of tests' counters: `python -m tests.support.relayed`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from shared.events.topics import Topic
from shared.partitions import partition_for
from shared.postgres import Pool
from shared.process import die_with_parent, run, until_signalled
from shared.relay.loop import Relay
from shared.relay.publication import Publication
from shared.settings import Base, load
from shared.telemetry import configure_logging
from tests.support.eventlog import rows, states_of
from tests.support.topics import decoded, read_topic

EVENTS = Topic("counter-events", {"cleanup.policy": "delete", "retention.ms": "-1"})
STATES = Topic("counter-states", {"cleanup.policy": "compact"})
PUBLICATION = Publication("keyledger/counters", EVENTS, STATES, states_of)
PARTITIONS = 3


class RelayProcess:
    """A relay on a database and a Kafka; its log goes to a file."""

    def __init__(self, dsn: str, kafka: str, log: Path) -> None:
        environment = os.environ | {
            "KEYLEDGER_KAFKA": kafka,
            "KEYLEDGER_PARTITIONS": str(PARTITIONS),
            "TEST_DATABASE": dsn,
        }
        with log.open("ab") as output:
            command = (sys.executable, "-m", "tests.support.relayed")
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None


async def published(pool: Pool) -> bool:
    """Whether the relay has published all there is."""
    found = await rows(pool, "SELECT log_head.position = relay.position AS done FROM log_head, relay")
    return bool(found[0]["done"])


async def assert_events_are_the_log(pool: Pool, kafka: str) -> None:
    """Each stream's events lie in one partition, in order, whole, when those that were held already are dropped."""
    log = await rows(pool, "SELECT position, event_id::text AS id, stream, version, data FROM events ORDER BY position")
    held: Counter[str] = Counter()
    ids: dict[tuple[str, int], str] = {}
    taken = []
    for number, records in (await read_topic(kafka, EVENTS.name)).items():
        for record, event in zip(records, decoded(records), strict=True):
            stream, version = event["subject"], event["streamversion"]
            assert record.key == stream.encode()
            assert number == partition_for(record.key, PARTITIONS)
            assert b"secret" not in (record.value or b"")
            if version > held[stream]:
                assert version == held[stream] + 1, f"{stream} goes from {held[stream]} to {version}"
                held[stream] = version
                ids[stream, version] = event["id"]
                taken.append((event["position"], event["id"], stream, version, event["data"]))
            assert ids[stream, version] == event["id"]
    assert sorted(taken) == [tuple(row.values()) for row in log]


async def assert_transactions_end_with_heartbeats(kafka: str) -> None:
    """Before each hole that a commit marker leaves there is a heartbeat."""
    for records in (await read_topic(kafka, STATES.name)).values():
        offsets = {record.offset for record in records}
        last = [
            event for record, event in zip(records, decoded(records), strict=True) if record.offset + 1 not in offsets
        ]
        assert {event["type"] for event in last} == {"states.heartbeat"}


async def assert_states_are_the_table(pool: Pool, kafka: str) -> None:
    """The last state of each counter is its row; each heartbeat counts what lies before it; a partition ends with one,
    of the newest generation."""
    table = {row["stream"]: row for row in await rows(pool, "SELECT stream, version, total FROM counters")}
    head = (await rows(pool, "SELECT position, epoch FROM log_head"))[0]
    generation = (await rows(pool, "SELECT generation FROM relay"))[0]["generation"]
    last = {}
    for number, records in (await read_topic(kafka, STATES.name)).items():
        seen: dict[str, int] = {}
        beat: dict[str, int] = {}
        for event in decoded(records):
            if event["type"] == "states.heartbeat":
                assert event["subject"] == f"beat-{number}"
                assert event["data"]["partition"] == number
                assert event["data"]["streams"] == len(seen)
                assert event["data"]["position"] >= beat.get("position", 0)
                beat = event["data"]
            else:
                assert event["streamversion"] >= seen.get(event["subject"], 0)
                seen[event["subject"]] = event["streamversion"]
                last[event["subject"]] = {
                    "stream": event["subject"],
                    "version": event["streamversion"],
                    "total": event["data"]["total"],
                }
        final = decoded(records)[-1]
        assert (final["type"], final["epoch"]) == ("states.heartbeat", head["epoch"])
        of_partition = [stream for stream in table if partition_for(stream.encode(), PARTITIONS) == number]
        assert final["data"] == {
            "partition": number,
            "position": head["position"],
            "streams": len(of_partition),
            "generation": generation,
        }
    assert last == table


def _main() -> None:
    die_with_parent()
    settings = load(Base)
    configure_logging("info", pid=str(os.getpid()))
    run(until_signalled(settings.internal, {}, Relay(settings, os.environ["TEST_DATABASE"], PUBLICATION).run))


if __name__ == "__main__":
    _main()
