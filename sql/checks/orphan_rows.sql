-- Every row belongs to a billing line and carries the line's labels.
--
-- A row of the result is one chargeback row that does not. Looked at are the days in doubt (sql/warehouse/doubts.sql).
WITH
days AS MATERIALIZED (
    SELECT DISTINCT charge_date
    FROM doubts
    WHERE check_name = 'orphan_rows'
),

lines AS (
    SELECT
        charge_date,
        line_id,
        ecosystem,
        billing_period,
        env_id,
        resource_id,
        product_category,
        product_type,
        line_item_type,
        region,
        operation,
        sub_account_id,
        invoice_id,
        currency
    FROM billing
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

rows AS (
    SELECT
        charge_date,
        line_id,
        part,
        identity_id,
        amount,
        ecosystem,
        billing_period,
        env_id,
        resource_id,
        product_category,
        product_type,
        line_item_type,
        region,
        operation,
        sub_account_id,
        invoice_id,
        currency
    FROM chargeback
    SEMI JOIN days USING (charge_date)
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
)

SELECT
    $tenant_id AS tenant_id,
    charge_date,
    line_id,
    part,
    identity_id,
    amount,
    ecosystem,
    billing_period,
    env_id,
    resource_id,
    product_category,
    product_type,
    line_item_type,
    region,
    operation,
    sub_account_id,
    invoice_id,
    currency
FROM rows
ANTI JOIN lines
    ON rows.charge_date = lines.charge_date
    AND rows.line_id = lines.line_id
    AND rows.ecosystem IS NOT DISTINCT FROM lines.ecosystem
    AND rows.billing_period IS NOT DISTINCT FROM lines.billing_period
    AND rows.env_id IS NOT DISTINCT FROM lines.env_id
    AND rows.resource_id IS NOT DISTINCT FROM lines.resource_id
    AND rows.product_category IS NOT DISTINCT FROM lines.product_category
    AND rows.product_type IS NOT DISTINCT FROM lines.product_type
    AND rows.line_item_type IS NOT DISTINCT FROM lines.line_item_type
    AND rows.region IS NOT DISTINCT FROM lines.region
    AND rows.operation IS NOT DISTINCT FROM lines.operation
    AND rows.sub_account_id IS NOT DISTINCT FROM lines.sub_account_id
    AND rows.invoice_id IS NOT DISTINCT FROM lines.invoice_id
    AND rows.currency IS NOT DISTINCT FROM lines.currency
ORDER BY charge_date, line_id, part, identity_id;
