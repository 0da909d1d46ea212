-- Nothing leaks from a day: billed = direct + usage + shared + operator + unallocated.
--
-- A row of the result is one billing period, day and currency for which that is not so. Money is classed by its payer
-- first (UNALLOCATED, the operator), then by its kind of cost; a kind that is none of these leaves a difference. Looked
-- at are the days in doubt (sql/warehouse/doubts.sql).
WITH
days AS MATERIALIZED (
    SELECT DISTINCT charge_date
    FROM doubts
    WHERE check_name = 'day_sum'
),

operators AS (
    SELECT id
    FROM identities
    WHERE tenant_id = $tenant_id
        AND type = 'operator'
),

billed AS (
    SELECT billing_period, charge_date, currency, sum(amount) AS billed
    FROM billing
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
    GROUP BY billing_period, charge_date, currency
),

payers AS (
    SELECT billing_period, charge_date, currency, identity_id, cost_type, sum(amount) AS amount
    FROM chargeback
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
    GROUP BY billing_period, charge_date, currency, identity_id, cost_type
),

classes AS (
    SELECT
        billing_period,
        charge_date,
        currency,
        CASE
            WHEN identity_id = 'UNALLOCATED' THEN 'unallocated'
            WHEN identity_id IN (FROM operators) THEN 'operator'
            ELSE cost_type
        END AS class,
        amount
    FROM payers
),

allocated AS (
    SELECT
        billing_period,
        charge_date,
        currency,
        coalesce(sum(amount) FILTER (class = 'direct'), 0) AS direct,
        coalesce(sum(amount) FILTER (class = 'usage'), 0) AS usage,
        coalesce(sum(amount) FILTER (class = 'shared'), 0) AS shared,
        coalesce(sum(amount) FILTER (class = 'operator'), 0) AS operator,
        coalesce(sum(amount) FILTER (class = 'unallocated'), 0) AS unallocated
    FROM classes
    GROUP BY billing_period, charge_date, currency
)

SELECT
    $tenant_id AS tenant_id,
    billing_period,
    charge_date,
    currency,
    billed.billed,
    allocated.direct,
    allocated.usage,
    allocated.shared,
    allocated.operator,
    allocated.unallocated
FROM billed
FULL JOIN allocated USING (billing_period, charge_date, currency)
WHERE billed.billed IS DISTINCT FROM
    allocated.direct + allocated.usage + allocated.shared + allocated.operator + allocated.unallocated
ORDER BY billing_period, charge_date, currency;
