"""Topics into PostgreSQL, each event exactly once.

`loop` runs the consumer on Kafka, `positions` knows where each partition is read. What was fetched is a `batch`, of which
as much as possible is prepared ahead: it goes through `records` (bytes into events) and `intake` (which of them are new: by
`marks`, by versions). The rest is done in the `transaction`, whose SQL is in `store` and `dead_letters`. `poison` judges
how much of what can't be taken is too much; `watch` looks after the rest.
"""
