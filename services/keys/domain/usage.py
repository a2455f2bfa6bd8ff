"""What of the keys' usage totals is the newest. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from shared.events.requests import KeyUsage


def newest(totals: Iterable[tuple[int, KeyUsage]]) -> list[tuple[int, KeyUsage]]:
    """Of each key's (epoch, totals) the newest, by key id: of the later epoch, or with the greater count."""
    found: dict[int, tuple[int, KeyUsage]] = {}
    for epoch, total in totals:
        held = found.get(total.key_id)
        if held is None or (epoch, total.usage_count) > (held[0], held[1].usage_count):
            found[total.key_id] = (epoch, total)
    return [found[key_id] for key_id in sorted(found)]
