-- Which counters changed: told batch by batch, by whoever changed them, until they are published. A flag in each counter
-- had to be set in an index and cleared again; that took longer than the counting.
CREATE TABLE changed_keys (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    keys bigint[] NOT NULL
);
ALTER TABLE changed_keys ALTER COLUMN keys SET STORAGE EXTERNAL;
INSERT INTO changed_keys (keys)
    SELECT array_agg(key_id) FROM (
        SELECT key_id, row_number() OVER (ORDER BY key_id) / 10000 AS part FROM key_counters WHERE changed
    ) AS flagged GROUP BY part;
DROP INDEX key_counters_changed;
ALTER TABLE key_counters DROP COLUMN changed;

-- Room for a counter's next row beside it, so that no index learns of it.
ALTER TABLE key_counters SET (fillfactor = 50);
