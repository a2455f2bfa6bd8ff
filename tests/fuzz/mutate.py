"""Inputs from inputs: bytes changed at random, and by pieces that mean something to HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

_LARGEST = 20_000
# What parsers trip over: names, values, line ends, lengths at the edges of integers.
TOKENS = [
    *(b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\r\n ", b"\r\n\t", b" ", b"\t"),
    *(b"\x00", b"\x0b", b"\x0c", b"\x7f", b"\x80", b"\xff", b"\xc2\xa0", b":", b",", b";", b'"', b"\\"),
    *(b"/", b"//", b"/.", b"/..", b"/../", b"%", b"%2e", b"%2f", b"%5c", b"%00", b"%25", b"%c3%a4", b"#", b"?"),
    *(b"*", b"@", b"0", b"1", b"-1", b"+1", b"0x1", b"1_0", b"00000000", b"fffffffff", b"guarded", b"..;"),
    *(b"2147483648", b"4294967296", b"9223372036854775808", b"18446744073709551616"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Content_Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Connection: close\r\n", b"Connection: keep-alive, X-A\r\n"),
    *(b"Expect: 100-continue\r\n", b"Host: i\r\n", b"X-API-Key: x\r\n", b"Upgrade: websocket\r\n"),
    *(b"Trailer: A\r\n", b"A: b\r\n", b" folded\r\n", b"chunked", b"gzip, ", b"Date: x\r\n"),
    *(b"0\r\n\r\n", b"3\r\nabc\r\n", b"1;a=b\r\nx\r\n", b"0\r\nA: b\r\n\r\n"),
    *(b"GET ", b"HEAD ", b"POST ", b"OPTIONS * ", b"CONNECT ", b"http://h", b"HTTP/1.1", b"HTTP/1.0"),
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n"),
]


def mutated(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` after a few changes, some with parts of `others`."""
    for _ in range(random.choice((1, 1, 2, 3, 5, 8))):
        data = random.choice(_CHANGES)(random, data, others)[:_LARGEST]
    return data


def _span(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 1, 2, 4, 16, 64)))


def _replace(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + random.randbytes(end - start) + data[end:]


def _flip(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _remove(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[end:]


def _repeat(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[start:end] * random.choice((2, 3, 100)) + data[end:]


def _insert(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(TOKENS) + data[at:]


def _overwrite(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + random.choice(TOKENS) + data[end:]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _lines(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    lines = data.split(b"\r\n")
    first, second = (random.randrange(len(lines)) for _ in range(2))
    match random.randrange(3):
        case 0:
            lines[first], lines[second] = lines[second], lines[first]
        case 1:
            lines.insert(second, lines[first])
        case _:
            del lines[first]
    return b"\r\n".join(lines)


def _case(random: Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[start:end].swapcase() + data[end:]


_CHANGES: list[Callable[[Random, bytes, Sequence[bytes]], bytes]] = [
    *(_replace, _flip, _remove, _repeat, _insert, _insert, _overwrite, _overwrite, _splice, _lines, _lines, _case)
]
