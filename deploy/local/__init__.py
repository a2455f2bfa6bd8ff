"""The stack without containers: PostgreSQL, Kafka and all services as child processes of one supervisor."""
