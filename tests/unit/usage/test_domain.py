"""What request events mean for a key's counters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.usage.domain import Count, count
from shared.events.requests import Request, RequestEvent

NOON = datetime(2024, 3, 21, 12, tzinfo=UTC)


@st.composite
def events(draw: st.DrawFn) -> RequestEvent:
    key = draw(st.integers(1, 4))
    data = Request(
        sequence=0,
        previous=-1,
        edge="edge-1",
        key_id=key,
        owner_id=key * 10,
        decision=draw(st.sampled_from(["allowed", "rate_limited", "revoked"])),
        via=draw(st.sampled_from(["proxy", "authz", "session"])),
    )
    moment = NOON + timedelta(seconds=draw(st.integers(0, 100)))
    return RequestEvent(id="", source="", type="request.metered", time=moment, data=data)


def only(decision: str, via: str) -> Count:
    data = Request(0, -1, "edge-1", key_id=1, owner_id=2, decision=decision, via=via)
    return counted([RequestEvent(id="", source="", type="", time=NOON, data=data)])[1]


def counted(*parts: list[RequestEvent]) -> dict[int, Count]:
    counts: dict[int, Count] = {}
    for part in parts:
        count(counts, part)
    return counts


def test_calls_are_requests_let_through_by_proxy_or_for_another_one() -> None:
    assert only("allowed", "proxy") == Count(2, 1, 1, NOON)
    assert only("allowed", "authz") == Count(2, 1, 1, NOON)
    assert only("allowed", "session") == Count(2, 1, 0, None)
    assert only("rate_limited", "proxy") == Count(2, 1, 0, None)


@given(st.lists(events()))
def test_counts_add_up(found: list[RequestEvent]) -> None:
    counts = counted(found)
    assert set(counts) == {event.data.key_id for event in found}
    assert sum(added.rows for added in counts.values()) == len(found)
    for added in counts.values():
        assert 0 <= added.calls <= added.rows
        assert (added.last_used is None) == (added.calls == 0)


@given(st.lists(events()), st.integers(0, 30))
def test_any_split_of_the_events_adds_up_to_the_same(found: list[RequestEvent], at: int) -> None:
    assert counted(found) == counted(found[:at], found[at:])
