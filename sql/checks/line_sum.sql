-- Nothing leaks from a line: the rows of every billing line sum to the line, in each measure.
--
-- A row of the result is one billing line whose rows do not, or which has none. A measure that a line lacks (null)
-- is lacking in its rows too. Looked at are the days in doubt (sql/warehouse/doubts.sql).
WITH
days AS MATERIALIZED (
    SELECT DISTINCT charge_date
    FROM doubts
    WHERE check_name = 'line_sum'
),

lines AS (
    SELECT charge_date, line_id, amount, effective_amount, list_amount, contracted_amount
    FROM billing
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

allocated AS (
    SELECT
        charge_date,
        line_id,
        count(*) AS rows,
        sum(amount) AS amount,
        sum(effective_amount) AS effective_amount,
        sum(list_amount) AS list_amount,
        sum(contracted_amount) AS contracted_amount
    FROM chargeback
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
    GROUP BY charge_date, line_id
)

SELECT
    $tenant_id AS tenant_id,
    charge_date,
    line_id,
    coalesce(allocated.rows, 0) AS rows,
    lines.amount AS billed,
    allocated.amount AS allocated,
    lines.effective_amount AS effective_billed,
    allocated.effective_amount AS effective_allocated,
    lines.list_amount AS list_billed,
    allocated.list_amount AS list_allocated,
    lines.contracted_amount AS contracted_billed,
    allocated.contracted_amount AS contracted_allocated
FROM lines
LEFT JOIN allocated USING (charge_date, line_id)
WHERE allocated.rows IS NULL
    OR lines.amount IS DISTINCT FROM allocated.amount
    OR lines.effective_amount IS DISTINCT FROM allocated.effective_amount
    OR lines.list_amount IS DISTINCT FROM allocated.list_amount
    OR lines.contracted_amount IS DISTINCT FROM allocated.contracted_amount
ORDER BY charge_date, line_id;
