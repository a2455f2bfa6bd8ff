"""Topics into PostgreSQL, each event exactly once: the `loop` over Kafka, the `intake` that tells new from known (by
`marks`), a `batch` in one transaction, and what the database knows of it all (`store`).
"""
