-- Nothing leaks from a line: the rows of every billing line sum to the line, in each measure.
--
-- A row of the result is one billing line whose rows do not, or which has none. A measure that a line lacks (null)
-- is lacking in its rows too. Of `parts` (sql/warehouse/parts.sql) comes the first measure; the others are mostly null in
-- all rows, which the statistics of a file tell.
WITH
lines AS (
    SELECT charge_date, line_id, amount, effective_amount, list_amount, contracted_amount
    FROM billing
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

allocated AS (
    SELECT charge_date, line_id, sum(rows) AS rows, sum(amount) AS amount
    FROM parts
    GROUP BY charge_date, line_id
),

otherwise_allocated AS (
    SELECT
        charge_date,
        line_id,
        sum(effective_amount) AS effective_amount,
        sum(list_amount) AS list_amount,
        sum(contracted_amount) AS contracted_amount
    FROM chargeback
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
        AND (effective_amount IS NOT NULL OR list_amount IS NOT NULL OR contracted_amount IS NOT NULL)
    GROUP BY charge_date, line_id
)

SELECT
    $tenant_id AS tenant_id,
    charge_date,
    line_id,
    coalesce(allocated.rows, 0)::BIGINT AS rows,
    lines.amount AS billed,
    allocated.amount AS allocated,
    lines.effective_amount AS effective_billed,
    otherwise_allocated.effective_amount AS effective_allocated,
    lines.list_amount AS list_billed,
    otherwise_allocated.list_amount AS list_allocated,
    lines.contracted_amount AS contracted_billed,
    otherwise_allocated.contracted_amount AS contracted_allocated
FROM lines
LEFT JOIN allocated USING (charge_date, line_id)
LEFT JOIN otherwise_allocated USING (charge_date, line_id)
WHERE allocated.rows IS NULL
    OR lines.amount IS DISTINCT FROM allocated.amount
    OR lines.effective_amount IS DISTINCT FROM otherwise_allocated.effective_amount
    OR lines.list_amount IS DISTINCT FROM otherwise_allocated.list_amount
    OR lines.contracted_amount IS DISTINCT FROM otherwise_allocated.contracted_amount
ORDER BY charge_date, line_id;
