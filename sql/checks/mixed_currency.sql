-- A line has one currency, and its rows have the same.
--
-- A row of the result is one line with more than one currency over billing and chargeback. Only lines on which a
-- currency other than one (the first of the bill) occurs are looked at; in a bill of one currency there are none. The
-- rows are asked by `parts` (sql/warehouse/parts.sql), each of which has one currency.
WITH
lines AS NOT MATERIALIZED (
    SELECT charge_date, line_id, coalesce(currency, 'null') AS currency
    FROM billing
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

rows AS NOT MATERIALIZED (
    SELECT charge_date, line_id, coalesce(currency, 'null') AS currency
    FROM parts
),

one_currency AS MATERIALIZED (
    SELECT min(currency) AS currency
    FROM lines
),

other_lines AS MATERIALIZED (
    SELECT charge_date, line_id
    FROM lines
    WHERE currency IS DISTINCT FROM (SELECT currency FROM one_currency)

    UNION

    SELECT charge_date, line_id
    FROM rows
    WHERE currency IS DISTINCT FROM (SELECT currency FROM one_currency)
),

currencies AS (
    SELECT DISTINCT charge_date, line_id, currency
    FROM lines
    SEMI JOIN other_lines USING (charge_date, line_id)

    UNION

    SELECT DISTINCT charge_date, line_id, currency
    FROM rows
    SEMI JOIN other_lines USING (charge_date, line_id)
)

SELECT $tenant_id AS tenant_id, charge_date, line_id, list_sort(list(currency)) AS currencies
FROM currencies
GROUP BY charge_date, line_id
HAVING count(*) > 1
ORDER BY charge_date, line_id;
