"""keys: API keys and their owners.

Owns: the streams `key-<id>` and `owner-<id>`, and their read model. Truth: `events`; derived: `owners`, `keys`,
`key_hashes` (written with each append; `owners` and `keys` are what the next command reads: the streams' snapshots),
`key_usage` (from the topic). Topics out: `key-events`, `key-states`. Topics in: `key-usage` (counts shown in lists),
`edge-status` (who has applied a change). Asks the usage service for `usage[]`.
Promises: a secret is shown once and kept nowhere; a change is confirmed by the edges before the call returns.
"""
