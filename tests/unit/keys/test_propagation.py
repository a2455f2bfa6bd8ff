"""Receipts: which edges count, and what each has confirmed."""

from __future__ import annotations

from services.keys.propagation import Edge, Receipt, receipt
from shared.eventstore import Place


def _edge(position: int, *, epoch: int = 1, heard: float = 100.0, status: str = "live") -> Edge:
    return Edge(status, epoch, {2: position}, heard)


def test_live_edges_confirm_and_silent_ones_are_named() -> None:
    edges = {
        "a": _edge(7),
        "b": _edge(6),
        "quiet": _edge(7, heard=96.0),
        "gone": _edge(9, status="stopped"),
        "old": _edge(9, status="retired"),
    }
    found = receipt(edges, 2, Place(1, 7), 100.0, 99.963)
    assert found == Receipt(2, 1, ("gone", "quiet"), 37)
    assert found.header() == 'edges=2; confirmed=1; ms=37; silent="gone quiet"'


def test_what_was_applied_of_an_earlier_epoch_confirms_nothing() -> None:
    edges = {"before": _edge(900, epoch=1), "after": _edge(3, epoch=2)}
    assert receipt(edges, 2, Place(2, 3), 100.0, 100.0).confirmed == 1
    assert receipt(edges, 5, Place(2, 3), 100.0, 100.0).confirmed == 0


def test_without_kafka_nothing_is_claimed() -> None:
    assert Receipt(None).header() == "edges=unknown"
