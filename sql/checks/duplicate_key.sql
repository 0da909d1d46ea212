-- No two rows of billing, and none of chargeback, have the same key.
--
-- A row of the result is one key that more than one row has. Looked at are the days of billing and the parts of lines in
-- doubt (sql/warehouse/doubts.sql).
WITH
in_doubt AS MATERIALIZED (
    SELECT DISTINCT charge_date AS day_in_doubt, line_id AS line_in_doubt, part AS part_in_doubt
    FROM doubts
    WHERE check_name = 'duplicate_key'
),

lines AS (
    SELECT tenant_id, charge_date, line_id
    FROM billing
    SEMI JOIN in_doubt ON charge_date = day_in_doubt AND line_in_doubt IS NULL
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

rows AS (
    SELECT tenant_id, charge_date, line_id, part, identity_id
    FROM chargeback
    SEMI JOIN in_doubt
        ON charge_date = day_in_doubt
        AND line_id IS NOT DISTINCT FROM line_in_doubt
        AND part IS NOT DISTINCT FROM part_in_doubt
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
)

SELECT
    'billing' AS table_name,
    tenant_id,
    charge_date,
    line_id,
    NULL::SMALLINT AS part,
    NULL::VARCHAR AS identity_id,
    count(*) AS rows
FROM lines
GROUP BY tenant_id, charge_date, line_id
HAVING count(*) > 1

UNION ALL

SELECT 'chargeback' AS table_name, tenant_id, charge_date, line_id, part, identity_id, count(*) AS rows
FROM rows
GROUP BY tenant_id, charge_date, line_id, part, identity_id
HAVING count(*) > 1

ORDER BY table_name, tenant_id, charge_date, line_id, part, identity_id;
