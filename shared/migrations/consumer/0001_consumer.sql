-- Up to where each partition was taken, in which Kafka cluster. This row, compared and moved on, is the fence: of two
-- consumers that hold the same records only one can move it. turn counts its moves: an offset may come back, a turn never.
CREATE TABLE consumer_offsets (
    topic text NOT NULL,
    partition integer NOT NULL,
    cluster text NOT NULL,
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    turn bigint NOT NULL DEFAULT 0,
    moved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
);

-- Request logs: the last ordinal taken in each partition, and the open gaps as low, high, low, high, ...
-- changed: since it was last published, where somebody publishes marks.
CREATE TABLE request_marks (
    log text NOT NULL,
    partition integer NOT NULL,
    last bigint NOT NULL,
    gaps bigint[] NOT NULL DEFAULT '{}',
    gap_since timestamptz,
    closed boolean NOT NULL DEFAULT false,
    changed boolean NOT NULL DEFAULT true,
    PRIMARY KEY (log, partition)
);
CREATE INDEX request_marks_gap ON request_marks (gap_since) WHERE gap_since IS NOT NULL;

-- Request logs of which everything is taken, for ever: whatever arrives of them again is a duplicate.
CREATE TABLE closed_logs (
    log text PRIMARY KEY,
    last bigint NOT NULL,
    partitions integer NOT NULL,
    changed boolean NOT NULL DEFAULT true,
    closed_at timestamptz NOT NULL DEFAULT now()
);

-- Streams of relayed events: the version taken last.
CREATE TABLE stream_versions (
    topic text NOT NULL,
    stream text NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (topic, stream)
);

-- Records that could not be taken, as they came. done_at: when one was stored after all.
CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cluster text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    value bytea,
    header_names text[] NOT NULL,
    header_values bytea[] NOT NULL,
    error text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz
);
CREATE INDEX dead_letters_open ON dead_letters (topic, parked_at) WHERE done_at IS NULL;
