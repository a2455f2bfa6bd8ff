"""How long a client is waited for that is too slow. What it is answered then stands in `connection` (`_expire`)."""

from __future__ import annotations

from dataclasses import dataclass

from services.edge.clock import SECOND
from services.edge.settings import EdgeSettings


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in nanoseconds: for a request's `head`, from its first byte; `idle` between two requests; for a `body` in either
    direction, of which each byte gives `byte` back, up to the whole.

    `pressed`: all that a client has while others wait for the place that it holds.
    """

    head: int
    idle: int
    body: int
    byte: int
    pressed: int

    @classmethod
    def of(cls, settings: EdgeSettings) -> Patience:
        """As the settings have it."""
        return cls(
            head=int(settings.head_seconds * SECOND),
            idle=int(settings.idle_seconds * SECOND),
            body=int(settings.body_idle_seconds * SECOND),
            byte=SECOND // settings.body_rate,
            pressed=int(settings.pressed_seconds * SECOND),
        )
