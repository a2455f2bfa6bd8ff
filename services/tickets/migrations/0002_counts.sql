-- A command needs the number of replies, not their texts.
ALTER TABLE tickets ADD COLUMN replies integer NOT NULL DEFAULT 0;
UPDATE tickets SET replies = held.replies
    FROM (SELECT ticket_id, max(id) AS replies FROM replies GROUP BY ticket_id) AS held WHERE held.ticket_id = id;

-- How many tickets an owner has in each status, kept by every append: no list counts them.
CREATE TABLE ticket_counts (
    owner_id bigint PRIMARY KEY,
    open bigint NOT NULL,
    resolved bigint NOT NULL,
    closed bigint NOT NULL
);
INSERT INTO ticket_counts
    SELECT owner_id, count(*) FILTER (WHERE status = 'open'), count(*) FILTER (WHERE status = 'resolved'),
        count(*) FILTER (WHERE status = 'closed')
    FROM tickets GROUP BY owner_id;

CREATE INDEX tickets_by_status ON tickets (owner_id, status, id);
