-- Whether what was billed was allocated: `difference` is 0 where the ledger is in order.
--
-- A row is one tenant and currency. Parameters: $tenant_id (null: all), $from_date, $to_date (null: open; to
-- exclusive).
WITH
lines AS (
    SELECT tenant_id, currency, amount
    FROM billing
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

rows AS (
    SELECT tenant_id, currency, identity_id, amount
    FROM chargeback
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

currencies_billed AS (
    SELECT tenant_id, currency, sum(amount) AS billed, count(*) AS lines
    FROM lines
    GROUP BY tenant_id, currency
),

currencies_allocated AS (
    SELECT
        tenant_id,
        currency,
        sum(amount) AS allocated,
        coalesce(sum(amount) FILTER (identity_id = 'UNALLOCATED'), 0) AS unallocated,
        count(*) AS rows
    FROM rows
    GROUP BY tenant_id, currency
)

SELECT
    tenant_id,
    currency,
    coalesce(billed, 0) AS billed,
    coalesce(allocated, 0) AS allocated,
    coalesce(billed, 0) - coalesce(allocated, 0) AS difference,
    coalesce(unallocated, 0) AS unallocated,
    coalesce(lines, 0) AS lines,
    coalesce(rows, 0) AS rows
FROM currencies_billed
FULL JOIN currencies_allocated USING (tenant_id, currency)
ORDER BY tenant_id, currency;
