-- The log: gap-free positions in commit order, because every append takes the one row of log_head last.
CREATE TABLE log_head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch integer NOT NULL DEFAULT 1,
    position bigint NOT NULL DEFAULT 0,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    repair_needed text
);
INSERT INTO log_head DEFAULT VALUES;

CREATE TABLE events (
    position bigint PRIMARY KEY,
    event_id uuid NOT NULL UNIQUE,
    stream text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    type text NOT NULL,
    schema_version smallint NOT NULL,
    data jsonb NOT NULL,
    private jsonb,
    meta jsonb NOT NULL,
    recorded_at timestamptz NOT NULL,
    UNIQUE (stream, version)
);
CREATE INDEX events_first ON events (position) INCLUDE (stream) WHERE version = 1;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are append-only';
END $$;
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_never_truncated BEFORE TRUNCATE ON events EXECUTE FUNCTION refuse_change();

-- Commands that must not be carried out twice, with what they made.
CREATE TABLE commands (
    id uuid PRIMARY KEY,
    result jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- How far the relay is: everything up to position is in Kafka, whose partitions then ended at these offsets.
CREATE TABLE relay (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    position bigint NOT NULL DEFAULT 0,
    cluster text,
    offsets jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO relay DEFAULT VALUES;
