"""stats: what the dashboard shows, per owner.

Owns: read models only; all of it can be made anew from the topics. `keys` from key events, `tickets` and
`ticket_counts` from ticket events, `key_calls` from request events: there is no order between topics, so each has tables
of its own. Topics in: `key-events`, `ticket-events`, `request-events`. Serves `GET /api/v1/dashboard/stats` behind the edge.
Promises: numbers are exact as soon as the events are in, each counted once; they lag by less than half a second.
"""
