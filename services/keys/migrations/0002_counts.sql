-- How many keys an owner holds that are not deleted, kept by every append: neither lists nor creations count them.
ALTER TABLE owners ADD COLUMN keys integer NOT NULL DEFAULT 0;
UPDATE owners SET keys = held.keys
    FROM (SELECT owner_id, count(*) AS keys FROM keys WHERE status <> 'deleted' GROUP BY owner_id) AS held
    WHERE held.owner_id = id;
