"""A request's body between the client and the upstream: what has come and waits for a connection."""

from __future__ import annotations

from services.edge.http.body import LAST_CHUNK, chunk
from services.edge.http.message import Framing

AHEAD_MAX = 64 * 1024


class Upload:
    """One request's body, decoded. `received` and `waits` are bytes: all so far, and those held for a connection."""

    __slots__ = ("_chunked", "_declared", "_pieces", "done", "received", "waits", "whole")

    def __init__(self, framing: Framing) -> None:
        self.done = False
        self.received = 0
        self.waits = 0
        self.whole = True
        """Whether all that was received is still here, so that it could be sent anew."""
        self._declared = framing.length or 0
        self._chunked = framing.chunked
        self._pieces: list[bytes] = []

    @property
    def size(self) -> int:
        """How many bytes it has at least, by what was declared or received."""
        return max(self._declared, self.received)

    @property
    def ready(self) -> bool:
        """Whether an upstream need not wait for the client: all is here, or as much as may wait."""
        return self.done or self.waits > AHEAD_MAX

    def keep(self, data: bytes) -> None:
        """Holds a piece until there is a connection."""
        self._pieces.append(data)
        self.waits += len(data)

    def waited(self) -> list[bytes]:
        """What was held, framed for the upstream. A body that is complete stays here, in case none of it is sent."""
        pieces = [chunk(data) for data in self._pieces] if self._chunked else list(self._pieces)
        if self.done and self._chunked:
            pieces.append(LAST_CHUNK)
        self.waits = 0
        if not self.done:
            self._pieces = []
            self.whole = not self.received
        return pieces

    def framed(self, data: bytes) -> bytes:
        """A piece for the upstream that need not wait."""
        self.whole = False
        return chunk(data) if self._chunked else data

    def end(self) -> bytes:
        """What tells the upstream that the body is complete, beyond its bytes."""
        self.whole = self.whole and not self._chunked
        return LAST_CHUNK if self._chunked else b""

    def drop(self) -> None:
        """Lets go of what nobody will send."""
        self._pieces = []
        self.waits = 0
        self.whole = False
