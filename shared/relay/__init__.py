"""A service's log onto Kafka: the `loop` of its leader, what is published (`publication`), and how far (`checkpoint`)."""
