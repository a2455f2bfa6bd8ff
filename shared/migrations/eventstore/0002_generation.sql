-- How often partitions were filled again that Kafka had lost; heartbeats carry it.
ALTER TABLE relay ADD COLUMN generation bigint NOT NULL DEFAULT 0;
