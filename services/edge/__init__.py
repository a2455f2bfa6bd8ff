"""edge: the only door for clients. It knows every key by a copy of its state, judges and limits each request, passes it to
its upstream, and meters every answer exactly once.

Owns: the replica (LMDB), the request logs and the edge's id, all in its data directory; the key that signs identities.
Topics in: `key-states`, `usage-marks`. Topics out: `request-events`, `edge-status`. Tables: none.
Processes: a parent (`python -m services.edge`) with a serving process (`serve`), which has no client of Kafka or of a
database, and an agent (`agent`), which follows the states and ships the logs.

How a request travels: `server` reads it (`http1`, `framing`, `headers`, `paths`), `gate` judges it (`routes`, `replica`,
`domain`, `limiter`), `proxy` takes it to its `upstream` and back, `ledger` writes its record before the answer leaves.
"""
