-- The checkpoint's offsets are those of topics, which are known by their ids: one that was made anew has another.
-- streams: how many streams lie in each partition of the states up to position, without those that were retired: that
-- ended long ago, up to position retired, and whose states were deleted. NULL: not counted yet.
ALTER TABLE relay DROP COLUMN cluster;
ALTER TABLE relay ADD COLUMN topics jsonb NOT NULL DEFAULT '{}';
ALTER TABLE relay ADD COLUMN streams bigint[];
ALTER TABLE relay ADD COLUMN retired bigint NOT NULL DEFAULT 0;
