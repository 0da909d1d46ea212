-- One row is one part of a billing line, as its rows in chargeback have it: what they sum to, and signs of what they say.
--
-- Checks ask this table, which is made once for all of them, and look at the rows themselves, of which there are many
-- times as many, only where a part is not as it should be. Hashes have 64 bits: of all that may be wrong, they miss one
-- in 10^13 or so. Rows that differ in more than their payer (in a label, the part's amount, the total of its weights)
-- are several parts here.
CREATE OR REPLACE TEMP TABLE parts AS
WITH
rows AS NOT MATERIALIZED (
    SELECT
        *,
        part_amount::DOUBLE AS near_part_amount,
        -- All that a line says of its rows.
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
        ) AS labels_hash
    FROM chargeback
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
)

SELECT
    charge_date,
    line_id,
    part,
    part_amount,
    weight_total,
    labels_hash,
    count(*) AS rows,
    sum(amount) AS amount,
    any_value(billing_period) AS billing_period,
    any_value(currency) AS currency,
    count_if(cost_type IN ('direct', 'usage', 'shared', 'operator', 'unallocated')) AS rows_of_known_cost_type,

    -- Of as many rows with the same hash the payers are the same.
    bit_xor(hash(identity_id)) AS payers_hash,

    -- Positive weights that sum to their total, on intervals whose ends cancel each other out but for 0 and the total,
    -- lie side by side: there is a way along them from 0 to the total, which takes all of it.
    sum(weight) AS weight,
    min(weight) AS least_weight,
    bit_xor(xor(hash(weight_before), hash(try(weight_before + weight)))) AS ends_hash,

    -- How far a row's amount is at most from the part's amount apportioned by its weight, less what floating point may
    -- be off: each number as a DOUBLE, the product and the quotient are off by a factor within 2^-53 of 1, together by
    -- less than 1e-15 of the part's amount. A null is infinitely far off.
    max(
        coalesce(
            abs(amount::DOUBLE - near_part_amount * weight / weight_total) - abs(near_part_amount) * 2e-15,
            'infinity'
        )
    ) AS amount_off
FROM rows
GROUP BY charge_date, line_id, part, part_amount, weight_total, labels_hash;
