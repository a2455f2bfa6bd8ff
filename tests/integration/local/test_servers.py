"""PostgreSQL and Kafka as child processes: they keep what they acknowledged, come back by themselves, and end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local.directory import Directory
from deploy.local.postgres import Postgres
from deploy.local.state import load
from tests.support.eventually import eventually_sync
from tests.support.stack import Servers, is_alive, local_servers

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def own(path: Path) -> Iterator[Servers]:
    """Servers that no other test uses: these are killed."""
    with local_servers(path) as servers:
        yield servers


def kill_and_wait(servers: Servers, name: str) -> None:
    before = servers.processes.kill(name)
    servers.processes.wait_restarted(name, before)


def test_postgres_keeps_what_was_committed_over_sigkill(own: Servers) -> None:
    with own.fresh_database() as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        kill_and_wait(own, "postgres")
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_postgres_is_safe_and_asks_for_passwords(own: Servers) -> None:
    with psycopg.connect(own.postgres_dsn_admin) as connection:
        for name, value in (("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")):
            row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            assert row == (value,)
    port = psycopg.conninfo.conninfo_to_dict(own.postgres_dsn_admin)["port"]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}/postgres")


async def test_each_service_has_a_database_that_no_other_may_enter(own: Servers, path: Path) -> None:
    directory = Directory(path)
    state = load(directory)
    port = int(str(psycopg.conninfo.conninfo_to_dict(own.postgres_dsn_admin)["port"]))
    server = Postgres(directory.postgres, port, state.passwords["postgres"])
    passwords = {name: state.passwords[name] for name in ("keys", "usage")}
    await server.create_databases(passwords)
    await server.create_databases(passwords)
    dsn = server.dsn("keys", passwords["keys"])
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE mine (number int)")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(dsn, dbname="usage")


async def test_kafka_keeps_what_it_acknowledged_over_sigkill(own: Servers) -> None:
    await create_topic(own.kafka, "kept")
    await produce(own.kafka, "kept", b"before")
    kill_and_wait(own, "kafka")
    await produce(own.kafka, "kept", b"after")
    assert await consume(own.kafka, "kept", 2) == [b"before", b"after"]


async def test_a_broker_that_hangs_is_not_ready(own: Servers) -> None:
    pid = own.processes.pause("kafka")
    try:
        eventually_sync(lambda: not own.processes.status()["ready"])
    finally:
        own.processes.resume("kafka")
    own.processes.wait_ready()
    assert own.processes.process("kafka")["pid"] == pid


async def test_a_second_start_has_the_same_data_and_addresses(tmp_path: Path) -> None:
    with local_servers(tmp_path) as first:
        await create_topic(first.kafka, "kept")
        await produce(first.kafka, "kept", b"before")
        pids = [first.processes.process(name)["pid"] for name in ("postgres", "kafka")]
    assert not any(is_alive(pid) for pid in pids)
    # The number in a pid file that a crash left may be any other process's by now.
    data = Directory(tmp_path).postgres
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    with local_servers(tmp_path) as second:
        assert (second.postgres_dsn_admin, second.kafka) == (first.postgres_dsn_admin, first.kafka)
        assert await consume(second.kafka, "kept", 1) == [b"before"]


async def create_topic(kafka: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()


async def produce(kafka: str, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def consume(kafka: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        return [bytes((await consumer.getone()).value or b"") for _ in range(count)]
    finally:
        await consumer.stop()
