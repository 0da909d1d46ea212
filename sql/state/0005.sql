-- What a day of a cost model was made of can be told from what it would be made of now: no day is made of less.

-- `model` is a digest of what of the cost model held on the day ('': not known any more); `answers` a JSON object,
-- question -> [samples that came, samples that were missing], of the answers that its lines and usage were made of.
ALTER TABLE constructed_days ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE constructed_days ADD COLUMN answers TEXT NOT NULL DEFAULT '{}';

UPDATE constructed_days
SET answers = (
    SELECT json_group_object(known.metric, json_array(known.rows, known.gaps))
    FROM day_metrics AS known
    WHERE known.tenant_id = constructed_days.tenant_id
        AND known.charge_date = constructed_days.charge_date
        AND known.status = 'fetched'
);

PRAGMA user_version = 5;
