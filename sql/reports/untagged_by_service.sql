-- What has no owner: where tags are missing, and how much of it reached somebody all the same.
--
-- A row is one service and usage type in one tenant and currency. `untagged` is billed without an owner, of which pools
-- gave `pooled` to somebody and `unallocated` to nobody. Parameters: $tenant_id (null: all), $from_date, $to_date
-- (null: open; to exclusive).
WITH
rows AS (
    SELECT tenant_id, currency, product_category, product_type, identity_id, rule_id, charge_date, line_id, amount
    FROM chargeback
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
        AND rule_id <> 'direct'
),

services AS (
    SELECT
        tenant_id,
        currency,
        product_category,
        product_type,
        sum(amount) AS untagged,
        coalesce(sum(amount) FILTER (identity_id <> 'UNALLOCATED'), 0) AS pooled,
        coalesce(sum(amount) FILTER (identity_id = 'UNALLOCATED'), 0) AS unallocated,
        count(DISTINCT (charge_date, line_id)) AS lines
    FROM rows
    GROUP BY tenant_id, currency, product_category, product_type
)

SELECT tenant_id, currency, product_category, product_type, untagged, pooled, unallocated, lines
FROM services
ORDER BY tenant_id, currency, abs(untagged) DESC, product_category, product_type;
