"""The agent: the edge's one process that talks to Kafka. Follows the key states, ships the request logs, reports."""
