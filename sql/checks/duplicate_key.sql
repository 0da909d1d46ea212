-- No two rows of billing, and none of chargeback, have the same key.
--
-- A row of the result is one key that more than one row has. Files of billing are sorted by key, so a day whose lines come
-- in one run of strictly rising keys has no two alike, which one look at each line's successor shows; only days that do
-- not come so (a line of one day in two bills, a file out of order) have their keys grouped. The lines are taken in the
-- order in which they are read, whatever that is: a wrong order makes a day look out of order, no more. Of chargeback,
-- many of the `parts` (sql/warehouse/parts.sql) have the same payers: one of them tells whether these are all different.
WITH
billing_keys AS NOT MATERIALIZED (
    SELECT tenant_id, charge_date, line_id
    FROM billing
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

chargeback_keys AS NOT MATERIALIZED (
    SELECT tenant_id, charge_date, line_id, part, identity_id
    FROM chargeback
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

billing_neighbours AS (
    SELECT
        charge_date,
        line_id,
        lead(charge_date) OVER () AS next_charge_date,
        lead(line_id) OVER () AS next_line_id
    FROM billing_keys
),

billing_days_out_of_order AS (
    SELECT charge_date
    FROM billing_neighbours
    WHERE NOT coalesce(charge_date = next_charge_date AND line_id < next_line_id, FALSE)
    GROUP BY charge_date
    HAVING count(*) > 1
),

-- One part for each set of payers: the first, so that of sorted files only the rows near the beginning need be read.
payers AS MATERIALIZED (
    SELECT
        rows,
        payers_hash,
        unnest(min({charge_date: charge_date, line_id: line_id, part: part}))
    FROM parts
    WHERE rows > 1
        AND charge_date IS NOT NULL
        AND line_id IS NOT NULL
        AND part IS NOT NULL
    GROUP BY rows, payers_hash
),

repeated_payers AS MATERIALIZED (
    SELECT DISTINCT payers.rows, payers.payers_hash
    FROM chargeback_keys
    JOIN payers USING (charge_date, line_id, part)
    GROUP BY payers.rows, payers.payers_hash, identity_id
    HAVING count(*) > 1
),

parts_in_doubt AS MATERIALIZED (
    SELECT charge_date AS day_in_doubt, line_id AS line_in_doubt, part AS part_in_doubt
    FROM parts
    SEMI JOIN repeated_payers USING (rows, payers_hash)

    UNION

    SELECT charge_date, line_id, part
    FROM parts
    WHERE charge_date IS NULL
        OR line_id IS NULL
        OR part IS NULL

    UNION

    SELECT charge_date, line_id, part
    FROM parts
    GROUP BY charge_date, line_id, part
    HAVING count(*) > 1
)

SELECT
    'billing' AS table_name,
    tenant_id,
    charge_date,
    line_id,
    NULL::SMALLINT AS part,
    NULL::VARCHAR AS identity_id,
    count(*) AS rows
FROM billing_keys
SEMI JOIN billing_days_out_of_order USING (charge_date)
GROUP BY tenant_id, charge_date, line_id
HAVING count(*) > 1

UNION ALL

SELECT 'chargeback' AS table_name, tenant_id, charge_date, line_id, part, identity_id, count(*) AS rows
FROM chargeback_keys
SEMI JOIN parts_in_doubt
    ON charge_date IS NOT DISTINCT FROM day_in_doubt
    AND line_id IS NOT DISTINCT FROM line_in_doubt
    AND part IS NOT DISTINCT FROM part_in_doubt
GROUP BY tenant_id, charge_date, line_id, part, identity_id
HAVING count(*) > 1

ORDER BY table_name, tenant_id, charge_date, line_id, part, identity_id;
