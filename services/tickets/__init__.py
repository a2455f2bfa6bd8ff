"""tickets: what owners ask for help with, and what was answered.

Owns: the streams `ticket-<id>` and their read model. Truth: `events`; derived: `tickets`, `replies`,
`ticket_counts` (written with each append, and `tickets` read by the next command: it is the stream's snapshot). Topics
out: `ticket-events`. Topics in: none. Promise: a ticket's life can be read back from its events.
"""
