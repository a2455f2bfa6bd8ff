-- What was published lies in topics that are known by their ids: one that was made anew has another.
ALTER TABLE publication DROP COLUMN cluster;
ALTER TABLE publication ADD COLUMN topics jsonb NOT NULL DEFAULT '{}';

-- Marks are published in turns, by log and partition.
DROP INDEX request_marks_changed;
CREATE INDEX request_marks_changed ON request_marks (log, partition) WHERE changed;
