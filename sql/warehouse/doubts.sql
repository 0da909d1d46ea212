-- Where checks have to look: one row is a check that cannot be met by what `parts` (sql/warehouse/parts.sql) and billing
-- show of a day, or of a part of a line. What is in no doubt is in order, up to the hashes.
--
-- Most is shown of all lines of a day at once: they are as many as its rows have, and the hashes of what they say sum to
-- the same. Then each line has rows, these have its labels, and sum to it. (An amount is hashed as a DOUBLE, too: of its
-- 128 bits DuckDB hashes two halves that may change places, so that 0 and a unit less are alike.) A doubt need not be a
-- fault: the check says.
CREATE OR REPLACE TEMP TABLE doubts AS
WITH
lines AS MATERIALIZED (
    SELECT
        charge_date,
        line_id,
        amount,
        -- Hashes take nulls for alike, which no sum by period and currency does.
        line_id IS NOT NULL
        AND billing_period IS NOT NULL
        AND currency IS NOT NULL
        AND amount IS NOT NULL AS is_whole,
        -- These are mostly null.
        coalesce(effective_amount, list_amount, contracted_amount) IS NOT NULL AS has_other_amounts,
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
    FROM billing
    WHERE tenant_id = $tenant_id
),

lines_of_several_parts AS MATERIALIZED (
    SELECT DISTINCT charge_date, line_id
    FROM parts
    WHERE part <> 0
),

lines_of_parts AS NOT MATERIALIZED (
    SELECT charge_date, line_id, labels_hash, amount
    FROM parts
    ANTI JOIN lines_of_several_parts USING (charge_date, line_id)

    UNION ALL

    SELECT charge_date, line_id, labels_hash, sum(amount) AS amount
    FROM parts
    SEMI JOIN lines_of_several_parts USING (charge_date, line_id)
    GROUP BY charge_date, line_id, labels_hash
),

billed AS (
    SELECT
        charge_date,
        count(*) AS lines,
        count(line_id) AS lines_with_id,
        bool_and(is_whole) AS are_whole,
        bool_or(has_other_amounts) AS has_other_amounts,
        sum(hash(charge_date, line_id, labels_hash, amount, amount::DOUBLE)) AS said
    FROM lines
    GROUP BY charge_date
),

allocated AS (
    SELECT charge_date, count(*) AS lines, sum(hash(charge_date, line_id, labels_hash, amount, amount::DOUBLE)) AS said
    FROM lines_of_parts
    GROUP BY charge_date
),

-- Files of billing are sorted by key, so a day whose lines come in one run of strictly rising keys has no two alike,
-- which one look at each line's successor shows. The lines are taken in the order in which they are read, whatever that
-- is: a wrong order makes a day look out of order, no more.
neighbours AS (
    SELECT
        charge_date,
        line_id,
        lead(charge_date) OVER () AS next_charge_date,
        lead(line_id) OVER () AS next_line_id
    FROM lines
),

days_out_of_order AS MATERIALIZED (
    SELECT charge_date
    FROM neighbours
    WHERE NOT coalesce(charge_date = next_charge_date AND line_id < next_line_id, FALSE)
    GROUP BY charge_date
    HAVING count(*) > 1
),

days_of_repeated_lines AS MATERIALIZED (
    SELECT DISTINCT charge_date
    FROM lines
    SEMI JOIN days_out_of_order USING (charge_date)
    GROUP BY charge_date, line_id
    HAVING count(*) > 1
),

days_in_doubt AS MATERIALIZED (
    SELECT charge_date
    FROM billed
    FULL JOIN allocated USING (charge_date)
    WHERE NOT coalesce(
        billed.lines = allocated.lines
        AND billed.said = allocated.said
        AND billed.are_whole,
        FALSE
    )

    UNION

    FROM days_of_repeated_lines
),

-- Many parts have the same payers: one of them, the first, so that of sorted files only the rows near the beginning need
-- be read, tells whether these are all different.
payers AS MATERIALIZED (
    SELECT rows, payers_hash, unnest(min({charge_date: charge_date, line_id: line_id, part: part}))
    FROM parts
    WHERE rows > 1
        AND charge_date IS NOT NULL
        AND line_id IS NOT NULL
        AND part IS NOT NULL
    GROUP BY rows, payers_hash
),

repeated_payers AS MATERIALIZED (
    SELECT DISTINCT payers.rows, payers.payers_hash
    FROM chargeback
    JOIN payers USING (charge_date, line_id, part)
    WHERE tenant_id = $tenant_id
    GROUP BY payers.rows, payers.payers_hash, identity_id
    HAVING count(*) > 1
),

-- Elsewhere a line is one part, and no two lines are alike.
repeated_parts AS MATERIALIZED (
    SELECT charge_date, line_id, part
    FROM parts
    WHERE part IS DISTINCT FROM 0
        OR line_id IS NULL
        OR (charge_date, line_id) IN (FROM lines_of_several_parts)
        OR charge_date IN (FROM days_in_doubt)
    GROUP BY charge_date, line_id, part
    HAVING count(*) > 1
)

SELECT 'null_key' AS check_name, charge_date, NULL::BIGINT AS line_id, NULL::SMALLINT AS part
FROM billed
WHERE charge_date IS NULL
    OR lines_with_id < lines

UNION ALL

SELECT DISTINCT 'null_key', charge_date, NULL, NULL
FROM parts
WHERE charge_date IS NULL
    OR line_id IS NULL
    OR part IS NULL
    OR rows_with_payer < rows

UNION ALL

SELECT unnest(['day_sum', 'line_sum', 'mixed_currency', 'orphan_rows']), charge_date, NULL, NULL
FROM days_in_doubt

UNION ALL

SELECT DISTINCT 'day_sum', charge_date, NULL, NULL
FROM parts
WHERE NOT coalesce(cost_type IN ('direct', 'usage', 'shared', 'operator', 'unallocated'), FALSE)

UNION ALL

SELECT 'line_sum', charge_date, NULL, NULL
FROM billed
WHERE has_other_amounts

UNION ALL

-- The statistics of a file tell where all are null.
SELECT DISTINCT 'line_sum', charge_date, NULL, NULL
FROM chargeback
WHERE tenant_id = $tenant_id
    AND (effective_amount IS NOT NULL OR list_amount IS NOT NULL OR contracted_amount IS NOT NULL)

UNION ALL

SELECT 'duplicate_key', charge_date, NULL, NULL
FROM days_of_repeated_lines

UNION ALL

SELECT 'duplicate_key', charge_date, line_id, part
FROM parts
SEMI JOIN repeated_payers USING (rows, payers_hash)

UNION ALL

SELECT 'duplicate_key', charge_date, line_id, part
FROM parts
WHERE line_id IS NULL
    OR part IS NULL

UNION ALL

SELECT unnest(['duplicate_key', 'weight_total']), charge_date, line_id, part
FROM repeated_parts

UNION ALL

-- Parts whose amount has so few units that rows may have been left out for being 0 are among them.
SELECT 'weight_total', charge_date, line_id, part
FROM parts
WHERE NOT coalesce(
    least_weight > 0
    AND weight = weight_total
    AND weight_total < 4611686018427387904
    AND ends_hash = xor(hash(0::BIGINT), hash(weight_total))
    AND rows_with_numbers = rows
    AND part_amount::DOUBLE
    BETWEEN least_amount_by_weight * weight_total - abs(part_amount::DOUBLE) * 1e-15
    AND greatest_amount_by_weight * weight_total + abs(part_amount::DOUBLE) * 1e-15,
    FALSE
);
