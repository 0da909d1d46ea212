-- Which question answered each resource of a day's metric, what Prometheus warned of, and what ran.

-- `fetches`: resource -> number of the question that answered it (JSON); 0 for one whose usage is as it was found in the
-- lake. It stays when a later question fails. `fetch_id` is the last of them.
ALTER TABLE day_metrics ADD COLUMN fetches TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(fetches));
UPDATE day_metrics
SET fetches = (SELECT json_group_object(ids.value, day_metrics.fetch_id) FROM json_each(day_metrics.ids) AS ids)
WHERE status = 'fetched';

-- `warned`: Prometheus said that its answer may be a part of the truth only.
ALTER TABLE metric_fetches ADD COLUMN warned INTEGER NOT NULL DEFAULT 0 CHECK (warned IN (0, 1));

-- `running`: how many of the rows are statements that ran, for which nobody can be asked later.
ALTER TABLE usage_days ADD COLUMN running INTEGER NOT NULL DEFAULT 0;
UPDATE usage_days
SET running = max(0, rows - (
    SELECT coalesce(sum(known.rows), 0)
    FROM day_metrics AS known
    WHERE known.tenant_id = usage_days.tenant_id AND known.charge_date = usage_days.charge_date
))
WHERE tenant_id IN (SELECT tenant_id FROM gathers);

PRAGMA user_version = 6;
