"""The topics: who may rely on what. The service that produces to a topic creates it; the partition count never changes."""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Topic:
    """A topic's name and its configuration beyond the cluster's defaults."""

    name: str
    config: dict[str, str] = field(default_factory=dict)


def _compacted(segment_ms: int) -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "segment.ms": str(segment_ms),
        "min.cleanable.dirty.ratio": "0.1",
        "max.compaction.lag.ms": str(segment_ms),
    }


_FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}

KEY_EVENTS = Topic("key-events", _FOR_EVER)
TICKET_EVENTS = Topic("ticket-events", _FOR_EVER)
KEY_STATES = Topic("key-states", _compacted(3600_000))
REQUEST_EVENTS = Topic("request-events", {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS)})
KEY_USAGE = Topic("key-usage", _compacted(3600_000))
USAGE_MARKS = Topic("usage-marks", _compacted(600_000))
EDGE_STATUS = Topic("edge-status", _compacted(600_000))
