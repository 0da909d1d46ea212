-- Every row belongs to a billing line and carries the line's labels.
--
-- A row of the result is one chargeback row that does not. Key and labels of lines and rows are compared by their hashes
-- (of 64 bits: a wrong row would pass by accident once in 10^13 rows), and of rows that follow each other with the same
-- hash, as those of a line do, only the last is. A line or row in doubt is joined on the key and all labels: a row that
-- finds its line so is in order.
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
        ) AS said
    FROM lines
),

row_hashes AS (
    SELECT
        charge_date,
        line_id,
        hash(
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
        ) AS said
    FROM rows
),

neighbours AS (
    SELECT charge_date, line_id, said, lead(said) OVER () AS next_said
    FROM row_hashes
),

lines_in_doubt AS MATERIALIZED (
    SELECT DISTINCT charge_date AS day_in_doubt, line_id AS line_in_doubt
    FROM neighbours
    ANTI JOIN line_hashes USING (said)
    WHERE said IS DISTINCT FROM next_said
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
