-- Answers are compared only with answers to the same question, of which as much was expected.

-- `points`: how many values an answer has for the day, however many of the expected samples (`rows`) they are made of.
ALTER TABLE day_metrics ADD COLUMN points INTEGER NOT NULL DEFAULT 0;
UPDATE day_metrics SET points = rows WHERE status = 'fetched';

-- `answers`: question -> [samples that came, samples that were missing, values, digest of the question, number of the
-- answer]. Of days that were made before, question and number are those of the answer that is known and has as many.
UPDATE constructed_days
SET answers = (
    SELECT json_group_object(
        made.key,
        json_array(
            json_extract(made.value, '$[0]'),
            json_extract(made.value, '$[1]'),
            json_extract(made.value, '$[0]'),
            coalesce(json_extract(known.ids, '$[0]'), ''),
            coalesce(known.fetch_id, 0)
        )
    )
    FROM json_each(constructed_days.answers) AS made
    LEFT JOIN day_metrics AS known
        ON known.tenant_id = constructed_days.tenant_id
        AND known.charge_date = constructed_days.charge_date
        AND known.metric = made.key
        AND known.status = 'fetched'
        AND known.rows = json_extract(made.value, '$[0]')
        AND known.gaps = json_extract(made.value, '$[1]')
);

PRAGMA user_version = 7;
