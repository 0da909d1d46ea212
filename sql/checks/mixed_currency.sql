-- A line has one currency, and its rows have the same.
--
-- A row of the result is one line with more than one currency over billing and chargeback. Looked at are the days in
-- doubt (sql/warehouse/doubts.sql).
WITH
days AS MATERIALIZED (
    SELECT DISTINCT charge_date
    FROM doubts
    WHERE check_name = 'mixed_currency'
),

currencies AS (
    SELECT DISTINCT charge_date, line_id, coalesce(currency, 'null') AS currency
    FROM billing
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date

    UNION

    SELECT DISTINCT charge_date, line_id, coalesce(currency, 'null') AS currency
    FROM chargeback
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
)

SELECT $tenant_id AS tenant_id, charge_date, line_id, list_sort(list(currency)) AS currencies
FROM currencies
WHERE line_id IS NOT NULL
GROUP BY charge_date, line_id
HAVING count(*) > 1
ORDER BY charge_date, line_id;
