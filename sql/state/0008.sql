-- Answers are told apart by all of them that came, not by the broker of which fewest came, which may have none at all.

-- `total`: the sum of the samples that came, of all brokers; or of what nobody counts, of its values. A decimal; '' of
-- what was counted before, until it is counted again. Of what days were made of it is the sixth place in `answers`.
ALTER TABLE day_metrics ADD COLUMN total TEXT NOT NULL DEFAULT '';

PRAGMA user_version = 8;
