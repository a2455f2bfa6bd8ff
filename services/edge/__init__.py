"""edge: the only door for clients. It knows every key by a copy of its state, judges and limits each request, passes it to
its upstream, and meters every answer exactly once.

Owns: the replica (LMDB), the request logs and the edge's id, all in its data directory; the key that signs identities.
Topics in: `key-states`, `usage-marks`. Topics out: `request-events`, `edge-status`. Tables: none.
Processes: a parent (`python -m services.edge`) with a serving process (`serving`), which has no client of Kafka or of a
database, and an agent (`agent`), which follows the states and ships the logs.

Rooms, each of which knows only those below it: `serving` | `agent` → `upstream` → `requestlog` | `replica` → `http` → `domain`,
`limiter`. How a request travels: `serving.connection` reads it (`http`), `serving.gate` judges it (`routes`, `replica`,
`domain`, `limiter`), `serving.exchange` takes it to its `upstream` and back, `serving.ledger` writes its record (`requestlog`)
before the answer leaves.
"""

# Before any of them is imported: it says which of these modules run compiled.
from services.edge import compiled as compiled
