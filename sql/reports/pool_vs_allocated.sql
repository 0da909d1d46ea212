-- What each rule was billed, and where it went.
--
-- A row is one rule of one bill in one tenant and currency: `billed` by its lines; borne by identities, the operator or
-- nobody; `difference` is 0 where the ledger is in order. Parameters: $tenant_id (null: all), $from_date, $to_date
-- (null: open; to exclusive).
WITH
operators AS (
    SELECT tenant_id, id
    FROM identities
    WHERE type = 'operator'
),

lines AS (
    SELECT tenant_id, billing_period, charge_date, line_id, amount
    FROM billing
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

rows AS (
    SELECT
        tenant_id,
        billing_period,
        charge_date,
        line_id,
        rule_id,
        currency,
        CASE
            WHEN identity_id = 'UNALLOCATED' THEN 'unallocated'
            WHEN (tenant_id, identity_id) IN (FROM operators) OR cost_type = 'operator' THEN 'operator'
            ELSE 'identities'
        END AS payer,
        amount
    FROM chargeback
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

lines_allocated AS (
    SELECT
        tenant_id,
        billing_period,
        charge_date,
        line_id,
        rule_id,
        currency,
        coalesce(sum(amount) FILTER (payer = 'identities'), 0) AS identities,
        coalesce(sum(amount) FILTER (payer = 'operator'), 0) AS operator,
        coalesce(sum(amount) FILTER (payer = 'unallocated'), 0) AS unallocated
    FROM rows
    GROUP BY tenant_id, billing_period, charge_date, line_id, rule_id, currency
),

rules AS (
    SELECT
        lines_allocated.tenant_id,
        lines_allocated.billing_period,
        lines_allocated.rule_id,
        lines_allocated.currency,
        sum(lines.amount) AS billed,
        sum(lines_allocated.identities) AS identities,
        sum(lines_allocated.operator) AS operator,
        sum(lines_allocated.unallocated) AS unallocated,
        count(*) AS lines
    FROM lines_allocated
    LEFT JOIN lines USING (tenant_id, billing_period, charge_date, line_id)
    GROUP BY ALL
)

SELECT
    tenant_id,
    billing_period,
    rule_id,
    currency,
    billed,
    identities,
    operator,
    unallocated,
    billed - identities - operator - unallocated AS difference,
    lines
FROM rules
ORDER BY tenant_id, billing_period, currency, rule_id;
