"""The documented API through the edge of a running stack: real processes, real sockets, numbers that travelled through Kafka."""
