-- How many tickets an owner has that are open and that are not, kept by every batch: the dashboard does not count them.
CREATE TABLE ticket_counts (
    owner_id bigint PRIMARY KEY,
    open bigint NOT NULL,
    settled bigint NOT NULL
);
INSERT INTO ticket_counts
    SELECT owner_id, count(*) FILTER (WHERE status = 'open'), count(*) FILTER (WHERE status <> 'open')
    FROM tickets GROUP BY owner_id;
