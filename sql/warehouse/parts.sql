-- One row is one part of a billing line, as its rows in chargeback have it: what they sum to, and signs of what they say.
--
-- Made once for all checks, which look at the rows themselves, of which there are many times as many, only where this
-- table leaves a doubt (sql/warehouse/doubts.sql). Hashes have 64 bits: of all that may be wrong, they miss one in 10^13
-- or so. Rows that differ in more than their payer (in a label, a kind of cost, the part's amount, the total of its
-- weights) are several parts here.
CREATE OR REPLACE TEMP TABLE parts AS
WITH
rows AS NOT MATERIALIZED (
    SELECT
        *,
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
)

SELECT
    charge_date,
    line_id,
    part,
    part_amount,
    weight_total,
    labels_hash,
    cost_type,
    count(*) AS rows,
    sum(amount) AS amount,

    -- Of as many rows with the same hash the payers are the same.
    count(identity_id) AS rows_with_payer,
    bit_xor(hash(identity_id)) AS payers_hash,

    -- Positive weights that sum to their total, on intervals whose ends cancel each other out but for 0 and the total,
    -- lie side by side: there is a way along them from 0 to the total, which takes all of it.
    sum(weight) AS weight,
    min(weight) AS least_weight,
    bit_xor(xor(hash(weight_before), hash(try(weight_before + weight)))) AS ends_hash,

    -- An amount less than a unit off, over its weight, times the total: between these lies the part's amount. (To convert
    -- that in every row, only to compare it, would take a tenth of the time that this table takes.)
    count(amount::DOUBLE / weight) AS rows_with_numbers,
    max((amount::DOUBLE - 1.001e-12) / weight) AS least_amount_by_weight,
    min((amount::DOUBLE + 1.001e-12) / weight) AS greatest_amount_by_weight
FROM rows
GROUP BY charge_date, line_id, part, part_amount, weight_total, labels_hash, cost_type;
