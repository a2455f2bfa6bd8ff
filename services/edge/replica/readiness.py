"""When the replica may be read: how to go on from where it stands, and when it holds all that Kafka says there is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Beat(NamedTuple):
    """A heartbeat of one partition: the place in the keys service's log that the partition is complete up to, and how
    many keys and owners lie in it there. `generation` changes when Kafka had lost records that were sent again."""

    epoch: int
    position: int
    streams: int
    generation: int = 0


def go_on_from(
    held: Mapping[int, int], cluster_held: str | None, cluster: str, bounds: Mapping[int, tuple[int, int]]
) -> dict[int, int] | None:
    """The offset from which to read each partition on; None when the offsets that are held mean nothing there any more.

    They don't in another cluster, above the log's end (the broker lost its tail), or below its start. A partition that
    was never read begins at its start.
    """
    if held and cluster_held != cluster:
        return None
    offsets = {number: held.get(number, first) for number, (first, _) in bounds.items()}
    inside = all(first <= offsets[number] <= end for number, (first, end) in bounds.items())
    return offsets if inside else None


def matches(beat: Beat | None, streams: int, at_least: Beat | None = None) -> bool:
    """Whether a copy that was read to its partition's end and holds `streams` keys and owners holds them all.

    `at_least`: the heartbeat of the copy that it is to replace. An older one is of an older log, in which a key that was
    revoked since is good.
    """
    if beat is None or beat.streams != streams:
        return False
    return at_least is None or (beat.epoch, beat.position) >= (at_least.epoch, at_least.position)


def may_serve(*, ready: bool, whole: bool, complete: bool, reachable: bool, silent: float, patience: float) -> bool:
    """Whether the replica may be read.

    `ready`: it may already, in this run of the edge, and stays so: what Kafka loses later is no reason to refuse.
    `whole`: every partition is read to its end and matches. Else only a copy that once was whole (`complete`) serves,
    alone, after Kafka could not be reached for `patience` seconds.
    """
    return ready or whole or (complete and not reachable and silent >= patience)


def reported(beats: Mapping[int, Beat | None]) -> tuple[int, dict[int, int]]:
    """The newest epoch among heartbeats, and the positions of those that are of it, by partition."""
    heard = {number: beat for number, beat in beats.items() if beat is not None}
    epoch = max((beat.epoch for beat in heard.values()), default=0)
    return epoch, {number: beat.position for number, beat in heard.items() if beat.epoch == epoch}
