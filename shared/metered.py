"""A key's metered requests over HTTP: how keys asks usage for them, what usage answers, and what clients see of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query
from pydantic import BaseModel

from shared.api import BIGINT, MAY_BE_ABSENT, Page, Timestamp, example
from shared.errors import Invalid
from shared.events.requests import Decision

DEEPEST = 10_000
"""How many rows deep pages go: the cost of a page is that of all rows before it, that of `before` is not."""

CALL = {
    "id": 1,
    "endpoint": "/api/v1/tickets",
    "method": "GET",
    "status_code": 200,
    "response_time": 0.15,
    "created_at": "2024-03-21T15:30:00Z",
}
_METERED = {**CALL, "request_id": "4bf92f3577b34da6a3ce929d0e0e4736", "decision": "allowed"}


class ApiCall(BaseModel):
    """A call made with the key; `response_time` is in seconds."""

    model_config = example(CALL)

    id: int
    endpoint: str
    method: str
    status_code: int
    response_time: float
    created_at: Timestamp


class MeteredRequest(ApiCall):
    """A metered request, let through or refused: `decision` says why."""

    model_config = example(_METERED)

    request_id: str
    decision: Decision


class MeteredRequestList(BaseModel):
    """A page of a key's metered requests, newest first; `total` counts all of the key's."""

    model_config = example({"usage": [_METERED], "total": 1, "page": 1, "size": 10})

    usage: list[MeteredRequest]
    total: int
    page: int
    size: int


@dataclass(frozen=True)
class RequestPage(Page):
    """A page of the requests that are older than the one with the id `before`, or of all."""

    before: int | None

    @property
    def query(self) -> dict[str, int]:
        """The page as the query that asks for it."""
        asked = {"page": self.page, "size": self.size}
        return asked if self.before is None else asked | {"before": self.before}


async def _request_page(
    page: Annotated[int, Query(ge=1, le=DEEPEST, description=f"`page` times `size` goes up to {DEEPEST:,}.")] = 1,
    size: Annotated[int, Query(ge=1, le=1000)] = 10,
    before: Annotated[
        int | None,
        Query(
            ge=1,
            le=BIGINT,
            description="Only requests older than the one with this `id`. To read all of them, ask for the first page"
            " and go on with `before`, the `id` of the last request that you have, until a page is empty: each costs the"
            " same however far back, and none is skipped or repeated while new ones arrive.",
        ),
        MAY_BE_ABSENT,
    ] = None,
) -> RequestPage:
    if page * size > DEEPEST:
        message = f"Pages go {DEEPEST:,} requests deep: go on with before, the id of the last one that you have."
        raise Invalid(message, errors=[{"field": "page", "message": message}])
    return RequestPage(page, size, before)


RequestPaged = Annotated[RequestPage, Depends(_request_page)]
