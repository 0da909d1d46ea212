-- Every row belongs to a billing line and carries the line's labels.
--
-- A row of the result is one chargeback row that does not. Labels of lines and rows are compared by their hashes, those
-- of rows once for each of `parts` (sql/warehouse/parts.sql). The rows of a line in doubt are joined on the key and all
-- labels: a row that finds its line so is in order.
WITH
lines AS NOT MATERIALIZED (
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

rows AS NOT MATERIALIZED (
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
),

line_hashes AS (
    SELECT
        hash(
            charge_date,
            line_id,
            hash(
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
        ) AS said
    FROM lines
),

part_hashes AS (
    SELECT charge_date, line_id, hash(charge_date, line_id, labels_hash) AS said
    FROM parts
),

lines_in_doubt AS MATERIALIZED (
    SELECT DISTINCT charge_date AS day_in_doubt, line_id AS line_in_doubt
    FROM part_hashes
    ANTI JOIN line_hashes USING (said)
),

-- Not all lines need be at hand to look up a few.
asked_lines AS (
    SELECT *
    FROM lines
    SEMI JOIN lines_in_doubt
        ON charge_date IS NOT DISTINCT FROM day_in_doubt
        AND line_id IS NOT DISTINCT FROM line_in_doubt
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
JOIN lines_in_doubt
    ON charge_date IS NOT DISTINCT FROM day_in_doubt
    AND line_id IS NOT DISTINCT FROM line_in_doubt
ANTI JOIN asked_lines USING (
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
