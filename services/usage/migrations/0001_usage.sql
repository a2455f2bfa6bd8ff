-- Every metered request. call: it was let through. source and sequence tell where it came from, for audits; that each
-- is here once is the consumer's promise, so there is no unique index to pay for.
CREATE TABLE request_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id bigint NOT NULL,
    owner_id bigint NOT NULL,
    time timestamptz NOT NULL,
    call boolean NOT NULL,
    status_code smallint NOT NULL,
    response_time double precision NOT NULL,
    endpoint text NOT NULL,
    method text NOT NULL,
    decision text NOT NULL,
    via text NOT NULL,
    route text NOT NULL,
    key_version bigint NOT NULL,
    edge text NOT NULL,
    request_id text NOT NULL,
    correlation_id text,
    client_address text,
    source text NOT NULL,
    sequence bigint NOT NULL
);
-- A key's last calls, and, merged from its two halves, all of its requests, newest first.
CREATE INDEX request_log_of_key ON request_log (key_id, call, time DESC, id DESC);

-- Folded from request_log in the same transaction. changed: since it was last published.
CREATE TABLE key_counters (
    key_id bigint PRIMARY KEY,
    owner_id bigint NOT NULL,
    rows bigint NOT NULL,
    calls bigint NOT NULL,
    last_used timestamptz,
    changed boolean NOT NULL DEFAULT true
);
CREATE INDEX key_counters_changed ON key_counters (key_id) WHERE changed;
CREATE INDEX request_marks_changed ON request_marks (log) WHERE changed;
CREATE INDEX closed_logs_changed ON closed_logs (log) WHERE changed;

-- What the topics held after the last publication: where they end now before these offsets, Kafka has lost some of it.
CREATE TABLE publication (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch integer NOT NULL DEFAULT 1,
    cluster text,
    offsets jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO publication DEFAULT VALUES;
