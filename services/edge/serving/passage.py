"""The passage: what the edge knows of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from services.edge.domain import KeyState, Outcome, Verdict
from services.edge.routes import Route
from services.edge.serving.answers import Answer
from services.edge.serving.limits import limit_fields

if TYPE_CHECKING:
    from services.edge.serving.grant import Grant


class Passage(msgspec.Struct, eq=False, gc=False):
    """One request's way through the gate, and all that its record tells later.

    `grant`: what was found out of the key, for the next request. `answer`: the edge answers this itself. `metered`: the answer,
    whichever it will be, gets a row; `noted`: the log already holds a note of the admission. `close`: the connection ends with
    the answer.
    """

    request_id: str
    correlation_id: str | None
    address: str | None
    method: str
    endpoint: str
    admitted_ns: int
    time_ns: int
    route: Route | None = None
    key: KeyState | None = None
    key_hash: bytes = b""
    outcome: Outcome | None = None
    verdict: Verdict | None = None
    grant: Grant | None = None
    answer: Answer | None = None
    metered: bool = False
    noted: bool = False
    close: bool = False
    reason: str = ""

    @property
    def route_name(self) -> str:
        """The route's name, empty when none claims the path."""
        return self.route.name if self.route else ""

    def limit_fields(self) -> bytes:
        """The header lines that tell of the limits: none on 401 and without a key."""
        if self.verdict is None:
            return b""
        return limit_fields(self.verdict, self.admitted_ns, self.time_ns)
