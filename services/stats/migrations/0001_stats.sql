-- From key events.
CREATE TABLE keys (
    id bigint PRIMARY KEY,
    owner_id bigint NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    expires_at timestamptz
);
CREATE INDEX keys_of_owner ON keys (owner_id, id) WHERE status <> 'deleted';

-- From ticket events.
CREATE TABLE tickets (
    id bigint PRIMARY KEY,
    owner_id bigint NOT NULL,
    subject text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX tickets_of_owner ON tickets (owner_id, created_at DESC, id DESC);

-- From request events. Whole microseconds add up to the same sum in any order. A key's events come from one partition, so
-- no two consumers wait for each other's rows, as they would with a row for each owner.
CREATE TABLE key_calls (
    key_id bigint PRIMARY KEY,
    owner_id bigint NOT NULL,
    calls bigint NOT NULL,
    proxied bigint NOT NULL,
    succeeded bigint NOT NULL,
    response_microseconds numeric NOT NULL,
    last_used timestamptz
);
CREATE INDEX key_calls_of_owner ON key_calls (owner_id);
