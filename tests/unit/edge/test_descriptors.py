"""How the files that a process may have open are shared out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.edge.descriptors import BACKLOG, KEPT, Shares, shares


def test_with_files_enough_all_is_as_it_is_set() -> None:
    assert shares(20_000, clients=10_000, upstream=256, upstreams=4) == Shares(10_000, 256, BACKLOG)


def test_with_few_each_has_some() -> None:
    assert shares(1024, clients=10_000, upstream=256, upstreams=4) == Shares(480, 60, 120)


@given(st.integers(0, 1 << 30), st.integers(1, 100_000), st.integers(1, 1000), st.integers(1, 50))
def test_all_shares_together_fit(limit: int, clients: int, upstream: int, upstreams: int) -> None:
    found = shares(limit, clients=clients, upstream=upstream, upstreams=upstreams)
    assert 1 <= found.clients <= clients and 1 <= found.upstream <= upstream and 1 <= found.backlog <= BACKLOG
    if limit >= KEPT + 16 + 8 * upstreams:
        assert found.clients + 2 * found.backlog + upstreams * found.upstream <= limit - KEPT
