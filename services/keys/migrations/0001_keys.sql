CREATE SEQUENCE owner_ids;
CREATE SEQUENCE key_ids;

CREATE TABLE owners (
    id bigint PRIMARY KEY,
    version integer NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    max_keys integer NOT NULL
);

CREATE TABLE keys (
    id bigint PRIMARY KEY,
    version integer NOT NULL,
    owner_id bigint NOT NULL,
    name text NOT NULL,
    description text,
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    state jsonb NOT NULL
);
CREATE INDEX keys_of_owner ON keys (owner_id, id) WHERE status <> 'deleted';

-- A hash is one key's, over all owners and all time.
CREATE TABLE key_hashes (
    hash bytea PRIMARY KEY,
    key_id bigint NOT NULL
);

CREATE TABLE key_usage (
    key_id bigint PRIMARY KEY,
    epoch integer NOT NULL,
    usage_count bigint NOT NULL,
    last_used timestamptz
);
