-- Every row belongs to a billing line and carries the line's labels.
--
-- A row of the result is one chargeback row that does not. The join is on the key and all labels: a row that finds its
-- line so is in order, and nothing else has to be compared.
WITH
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
        currency,
        amount
    FROM chargeback
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
ANTI JOIN lines USING (
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
)
ORDER BY charge_date, line_id, part, identity_id;
