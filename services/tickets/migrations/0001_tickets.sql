CREATE SEQUENCE ticket_ids;

CREATE TABLE tickets (
    id bigint PRIMARY KEY,
    version integer NOT NULL,
    owner_id bigint NOT NULL,
    subject text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX tickets_of_owner ON tickets (owner_id, id);

CREATE TABLE replies (
    ticket_id bigint NOT NULL,
    id integer NOT NULL,
    body text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (ticket_id, id)
);
