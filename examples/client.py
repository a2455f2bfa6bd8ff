"""A client that waits as it is told, backs off with jitter, and never does a thing twice.

    . .keyledger/env && python client.py GET /api/v1/api-keys
    . .keyledger/env && python client.py POST /api/v1/api-keys '{"name": "My API Key"}'

Needs nothing but Python (3.11 or newer).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

ATTEMPTS = 6
FIRST_WAIT = 0.2
LONGEST_WAIT = 10.0
# Twice is once: what was lost on the way, or may have been done, can be asked for again.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are in lower case; `body` is decoded JSON, None when there was none."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        """The stable code of a problem, empty when it is none."""
        return str(self.body.get("code", "")) if self.status >= 400 and isinstance(self.body, dict) else ""

    @property
    def refused(self) -> bool:
        """Whether it was turned away at the door, so that nothing was done: then any method may be repeated."""
        return self.status == 429 or (self.status == 503 and self.code == "not_ready")


class Client:
    """Sends requests with one key. A request and its repeats take at most `patience` seconds of waiting."""

    def __init__(
        self, url: str, key: str, *, patience: float = 70.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        parts = urlsplit(url)
        self._connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._at = parts.netloc
        self._key = key
        self._patience = patience
        self._sleep = sleep

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        """The answer, after as many repeats as may help. OSError or HTTPException when there was none at all.

        After a DELETE whose answer was lost, its repeat may say 404: it is done.
        """
        left = self._patience
        for attempt in range(ATTEMPTS):
            answer, error = self._send(method, path, body)
            wait = pause(method, answer, attempt)
            if wait is None or wait > left or attempt == ATTEMPTS - 1:
                break
            left -= wait
            self._sleep(wait)
        if answer is None:
            assert error is not None
            raise error
        return answer

    def _send(self, method: str, path: str, body: Any) -> tuple[Answer | None, Exception | None]:
        # Redirects are not followed: the key is for this server alone.
        connection = self._connect(self._at, timeout=30)
        headers = {"X-API-Key": self._key} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, _decoded(content)), None
        except (OSError, HTTPException) as error:
            return None, error
        finally:
            connection.close()


def pause(method: str, answer: Answer | None, attempt: int) -> float | None:
    """Seconds until the next attempt; None when the answer is to be taken as it is, or repeating could do harm.

    What the server asks for (Retry-After) is the least; on top comes a random part that grows, so that clients that
    were turned away together don't come back together.
    """
    lost = answer is None or answer.status in (500, 502, 503, 504)
    if not (answer is not None and answer.refused) and not (lost and method in IDEMPOTENT):
        return None
    told = answer.headers.get("retry-after", "") if answer else ""
    grown = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
    return (float(told) if told.isdigit() else 0.0) + random.uniform(0, grown)  # noqa: S311


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None


if __name__ == "__main__":
    client = Client(os.environ["KEYLEDGER_URL"], os.environ["KEYLEDGER_API_KEY"])
    try:
        result = client.request(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
    except (OSError, HTTPException) as failure:
        sys.exit(f"no answer: {failure}")
    sys.stdout.write(f"{result.status} {json.dumps(result.body, indent=2)}\n")
    sys.exit(result.status >= 400)
