"""The load generator says how long requests took that a server kept from being sent, and takes no answer but 200."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.load.generator import IDENTICAL, VARIED, Generator
from tests.load.servers import Proxy

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(tmp_path_factory.mktemp("generator"))


@contextmanager
def answering(answer: Callable[[int, bytes], bytes]) -> Iterator[Proxy]:
    """A server of one connection that answers the request with this number and these bytes so; with none it closes."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            number = 0
            while request := connection.recv(65536):
                if not (given := answer(number, request)):
                    return
                connection.sendall(given)
                number += 1

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Proxy("a server", listening.getsockname()[1], ())
        thread.join(10)


def test_what_a_server_holds_up_counts_from_when_it_was_due(generator: Generator) -> None:
    def stalls(number: int, _: bytes) -> bytes:
        time.sleep(0.5 if number == 150 else 0)
        return _OK

    with answering(stalls) as server:
        run = generator.load(server, IDENTICAL, seconds=1, connections=1, rate=200, core=None)
    assert run.answers > 200 and 150 < run.rate < 250
    # Some hundred requests were due meanwhile; counted from when they were sent, one of all would have been slow.
    assert run.latencies[1] > 0.3


def test_varied_requests_differ_in_all_their_fields(generator: Generator) -> None:
    requests: list[bytes] = []

    def keeps(_: int, request: bytes) -> bytes:
        requests.append(request)
        return _OK

    with answering(keeps) as server:
        run = generator.load(server, VARIED, seconds=0.2, connections=1, rate=200, core=None)
    assert run.answers == len(requests) > 100
    lines = [request.split(b"\r\n") for request in requests]
    assert [len(set(each)) == 1 for each in zip(*lines, strict=True)] == [False, True, True, False, False, True, True]
    assert all(
        len(set(each)) == len(requests)
        for each in (column for column in zip(*lines, strict=True))
        if each[0] != each[1]
    )


@pytest.mark.parametrize("answer", [_OK.replace(b"200", b"503"), b""], ids=["refused", "closed"])
def test_an_answer_that_is_none_fails_the_run(generator: Generator, answer: bytes) -> None:
    def ends(number: int, _: bytes) -> bytes:
        return answer if number == 3 else _OK

    with answering(ends) as server, pytest.raises(AssertionError, match="a server: "):
        generator.load(server, IDENTICAL, seconds=0.1, connections=1, core=None)
