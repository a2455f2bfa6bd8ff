"""What the tickets worker publishes: its log. It takes nothing in."""

from __future__ import annotations

from shared.events.topics import TICKET_EVENTS
from shared.relay.publication import Publication

PUBLICATION = Publication("keyledger/tickets", TICKET_EVENTS)
