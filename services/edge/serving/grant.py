"""What the gate found, and may find again."""

from __future__ import annotations

import msgspec

from services.edge.domain import KeyState
from services.edge.routes import Route
from services.edge.serving.answers import Answer
from services.edge.serving.documents import Document


class Place(msgspec.Struct, frozen=True, gc=False):
    """What a path leads to: one of the edge's own documents, or a route, or nothing. `endpoint` is how its records call it."""

    endpoint: str
    document: Document | None
    route: Route | None


class Grant(msgspec.Struct, frozen=True, gc=False):
    """That a key may do what it asked for, as far as its state says: so as long as the replica has its `moment`, and until
    `until_ns` (wall clock), for this secret, route and method, from the address of the connection that it was found for.

    `answer`: nothing is there for it to do all the same.
    """

    secret: bytes
    route: Route | None
    method: str
    moment: int
    until_ns: int
    key: KeyState
    key_hash: bytes
    answer: Answer | None
