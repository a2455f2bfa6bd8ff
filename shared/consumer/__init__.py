"""Topics into PostgreSQL, each event exactly once.

`loop` runs the consumer on Kafka, `positions` knows where each partition is read. What was fetched goes through
`records` (bytes into events), `intake` (which of them are new: by `marks`, by versions) and a `transaction`, whose SQL is in
`store` and `dead_letters`. `poison` judges how much of what can't be taken is too much.
"""
