-- Which keys, populations and scopes weighed nothing when a line asked for them, and what it was worth.
--
-- A row is one rung (or one key of a weighted rung) of one rule and why it did not weigh: on how many days, for how
-- many lines and what amount, in one tenant and currency. A part of a line that asked for several such keys counts for
-- each. Parameters: $tenant_id (null: all), $from_date, $to_date (null: open; to exclusive).
WITH
-- A weight scope is a window and, where a rung weighs cost, what lines and cost have to agree in: a JSON object.
keys AS (
    SELECT
        tenant_id,
        charge_date,
        billing_period,
        rule_id,
        part,
        rung,
        basis,
        metric,
        reason,
        nullif(regexp_extract(weight_scope, '[{].*$'), '') AS scope
    FROM empty_keys
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

rows AS (
    SELECT
        tenant_id,
        charge_date,
        billing_period,
        rule_id,
        part,
        rung,
        product_category,
        sub_account_id,
        currency,
        line_id,
        amount
    FROM chargeback
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

parts AS (
    SELECT
        tenant_id,
        charge_date,
        billing_period,
        rule_id,
        part,
        rung,
        product_category,
        sub_account_id,
        currency,
        line_id,
        sum(amount) AS amount
    FROM rows
    GROUP BY ALL
),

-- A part whose winning rung is later than the empty one fell past it; a weighted rung may hold without one of its keys.
parts_concerned AS (
    SELECT
        keys.tenant_id,
        keys.rule_id,
        keys.part,
        keys.rung,
        keys.basis,
        keys.metric,
        keys.reason,
        keys.charge_date,
        parts.currency,
        parts.line_id,
        parts.amount
    FROM keys
    JOIN parts
        ON parts.tenant_id = keys.tenant_id
        AND parts.charge_date = keys.charge_date
        AND parts.billing_period = keys.billing_period
        AND parts.rule_id = keys.rule_id
        AND parts.part = keys.part
        AND (parts.rung > keys.rung OR (parts.rung = keys.rung AND keys.basis = 'weighted'))
        AND parts.currency = coalesce(keys.scope ->> '$.currency', parts.currency)
        AND parts.sub_account_id = coalesce(keys.scope ->> '$.sub_account_id', parts.sub_account_id)
        AND parts.product_category = coalesce(keys.scope ->> '$.product_category', parts.product_category)
)

SELECT
    tenant_id,
    rule_id,
    part,
    rung,
    basis,
    metric,
    reason,
    currency,
    count(DISTINCT charge_date) AS days,
    count(DISTINCT (charge_date, line_id)) AS lines,
    sum(amount) AS amount
FROM parts_concerned
GROUP BY tenant_id, rule_id, part, rung, basis, metric, reason, currency
ORDER BY tenant_id, rule_id, part, rung, metric, reason, currency;
