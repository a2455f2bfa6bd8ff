"""What the keys worker publishes (its log and its keys' states) and what it takes in (the keys' usage counts)."""

from __future__ import annotations

from services.keys import store
from shared.events.topics import KEY_EVENTS, KEY_STATES
from shared.publication import Publication

PUBLICATION = Publication("keyledger/keys", KEY_EVENTS, KEY_STATES, store.states_of)
