"""tickets: what owners ask for help with, and what was answered.

Owns: the streams `ticket-<id>` and their read model. Truth: `events`; derived: `tickets`, `replies` (written with each
append). Topics out: `ticket-events`. Topics in: none. Promise: a ticket's life can be read back from its events.
"""
