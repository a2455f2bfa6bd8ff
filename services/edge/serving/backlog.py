"""The bound of what waits in memory: beginnings of requests, bodies without a connection yet, answers that clients don't take."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.edge.serving.link import Link

# The head of an honest request: so much may wait on each connection uncounted.
_SMALL = 4 * 1024


class Backlog:
    """How many bytes wait on which connections, at most `held_max`. When it is more, the connection gives way that has kept
    something waiting for longest: who fills memory on purpose does so for long, and all others only in passing.
    """

    def __init__(self, held_max: int) -> None:
        self.held = 0
        self._held_max = held_max
        self._by_connection: OrderedDict[Link, int] = OrderedDict()

    def hold(self, connection: Link, size: int) -> None:
        """On `connection` wait `size` bytes now."""
        size = size if size > _SMALL else 0
        self.held += size - self._by_connection.get(connection, 0)
        if size:
            # A connection that is held already keeps its place.
            self._by_connection[connection] = size
        else:
            self._by_connection.pop(connection, None)
        while self.held > self._held_max:
            oldest, freed = self._by_connection.popitem(last=False)
            self.held -= freed
            oldest.give_way()
