"""Bodies are the same however the network cuts them, and end where they say."""

from __future__ import annotations

import gc
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.http.body import LAST_CHUNK, BodyReader, ChunkedReader, EndReader, LengthReader, chunk
from services.edge.http.message import BadMessage


def read(reader: BodyReader, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """The body and what is left over, of `data` fed in pieces."""
    body, left = b"", b""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        if reader.done:
            left += data[start:end]
            continue
        piece, rest = reader.feed(data[start:end])
        body += piece
        left += rest
    return body, left


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.binary(max_size=30), st.lists(st.integers(0, 999)))
def test_chunks_are_decoded_however_they_are_cut(pieces: list[bytes], after: bytes, cuts: list[int]) -> None:
    reader = ChunkedReader()
    data = b"".join(map(chunk, pieces)) + LAST_CHUNK
    assert read(reader, data + after, cuts) == (b"".join(pieces), after)
    assert reader.done


@given(st.binary(max_size=60), st.binary(max_size=30), st.lists(st.integers(0, 999)))
def test_a_known_length_ends_where_it_says(body: bytes, after: bytes, cuts: list[int]) -> None:
    reader = LengthReader(len(body))
    assert read(reader, body + after, cuts) == (body, after)
    assert reader.done


def test_without_a_length_all_is_body() -> None:
    assert EndReader().feed(b"abc") == (b"abc", b"")


def test_extensions_and_trailers_are_dropped() -> None:
    reader = ChunkedReader()
    assert reader.feed(b'3;a=b;c="d"\r\nabc\r\n0;z\r\nX-Api-Key: k\r\nA: b\r\n\r\nGET') == (b"abc", b"GET")


BROKEN = {
    "no size": b"\r\n",
    "size not hex": b"g\r\n",
    "size with sign": b"+3\r\nabc\r\n",
    "size below zero": b"-3\r\n",
    "size with 0x": b"0x3\r\nabc\r\n",
    "size with underscore": b"1_0\r\n",
    "size with space before": b" 3\r\nabc\r\n",
    "size with space after": b"3 \r\nabc\r\n",
    "size too long": b"000000003\r\nabc\r\n",
    "huge size": b"fffffffffffffffff\r\n",
    "size ended by LF": b"3\nabc\r\n",
    "size ended by CR": b"3\rabc\r\n",
    "CR in extension": b"3;a\rb\r\nabc\r\n",
    "LF in extension": b"3;a\nb\r\nabc\r\n",
    "NUL in extension": b"3;a\x00\r\nabc\r\n",
    "long extension": b"3;" + b"a" * 300 + b"\r\nabc\r\n",
    "blank before an extension": b"3 ;a\r\nabc\r\n",
    "empty extension": b"3;\r\nabc\r\n",
    "trailer for a length": b"0\r\ncontent-LENGTH: 3\r\n\r\n",
    "trailer for an encoding": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "data too long": b"3\r\nabcd\r\n",
    "data ended by LF": b"3\r\nabc\n",
    "data not ended": b"3\r\nabc0\r\n\r\n",
    "trailer ended by LF": b"0\r\nA: b\n\r\n",
    "trailer without colon": b"0\r\nabc\r\n\r\n",
    "trailer with space before colon": b"0\r\nA : b\r\n\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "last line ended by LF": b"0\r\n\n",
    "trailers too large": b"0\r\n" + b"A: b\r\n" * 2000,
    "trailer too large": b"0\r\nA: " + b"b" * 9000,
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_not_exactly_a_chunk_is_refused(data: bytes, at_once: bool) -> None:
    reader = ChunkedReader()
    with pytest.raises(BadMessage):
        read(reader, data, [] if at_once else list(range(len(data))))


@pytest.mark.parametrize("data", [b"", b"3", b"3\r\na", b"3\r\nabc", b"0\r\nA: b", b"0\r\n\r\n"])
def test_a_reader_is_gone_with_its_message(data: bytes) -> None:
    """The garbage collector comes late: what only it frees would pile up."""
    gc.collect()
    gc.disable()
    try:
        ChunkedReader().feed(data)
        assert gc.collect() == 0
    finally:
        gc.enable()
