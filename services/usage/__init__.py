"""usage: every metered request, kept and counted exactly once.

Owns: the log of requests and the counters of keys. Truth: `request_log`; derived: `key_counters` (rows = its rows,
calls = those let through). Topics in: `request-events`. Topics out, from what is told to have changed:
`key-usage` (at most once a second per key), `usage-marks` (what is stored of each request log, at most every 200 ms; edges
delete by it). Asked over HTTP by keys for `usage[]` and `/usage`, with the caller's identity token.
Promises: a request event is one row and is counted once, whatever dies, is sent again or comes late.
"""
