-- Offsets mean something only in the topic that they were stored for: one that was deleted and made anew, or is in another
-- cluster, has another id. Offsets from before count on where cluster is that of now: then they get the topic's id.
ALTER TABLE consumer_offsets ALTER COLUMN cluster DROP NOT NULL;
ALTER TABLE consumer_offsets ADD COLUMN topic_id text NOT NULL DEFAULT '';

-- Records that were parked since of which not even the version can be read: one of them may be the next version.
ALTER TABLE stream_versions ADD COLUMN unread integer NOT NULL DEFAULT 0;

-- A record that is read again is parked once. size: about what a row takes.
ALTER TABLE dead_letters DROP COLUMN cluster;
ALTER TABLE dead_letters ADD COLUMN topic_id text NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN size bigint NOT NULL
    GENERATED ALWAYS AS (500 + coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0)) STORED;
CREATE UNIQUE INDEX dead_letters_once ON dead_letters (topic_id, partition, "offset") WHERE topic_id <> '';
CREATE INDEX dead_letters_age ON dead_letters (parked_at);
