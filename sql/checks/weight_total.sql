-- Every amount is about what its weights say, and the weights of a part fit together.
--
-- A row of the result is one chargeback row and what is wrong with it:
--   weight        a weight is not positive, its interval [weight_before, weight_before + weight) does not lie within
--                 [0, weight_total), the total is not below 2^62, or a number is null
--   amount        the amount is further than a unit, and what floating point may be off, from the part's amount
--                 apportioned by the row's weights (a line's sum is exact, see line_sum; each amount, see apportionment)
--   weight_total  the rows of the part have several totals
--   part_amount   the rows of the part have several part amounts
--   overlap       the row's interval begins within that of the row before
--   gap           the row's interval does not begin where that of the row before ends (the first one's at 0, the last
--                 one's does not end at the total), although the part's amount has a unit for each weight, so that none
--                 of its rows can have been left out for being 0
-- Looked at are the parts of lines in doubt (sql/warehouse/doubts.sql).
WITH
rows AS NOT MATERIALIZED (
    SELECT
        tenant_id,
        charge_date,
        line_id,
        part,
        identity_id,
        amount,
        part_amount,
        part_amount::DOUBLE AS near_part_amount,
        weight_before,
        weight,
        weight_total,
        -- Null where the interval is none, or where a damaged row would overflow.
        CASE
            WHEN weight BETWEEN 1 AND weight_total
                AND weight_before BETWEEN 0 AND weight_total
                AND weight_total < 4611686018427387904
                THEN weight_before + weight
        END AS weight_after
    FROM chargeback
    WHERE tenant_id = $tenant_id
        AND month BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
),

parts_in_doubt AS MATERIALIZED (
    SELECT charge_date AS day_in_doubt, line_id AS line_in_doubt, part AS part_in_doubt
    FROM doubts
    WHERE check_name = 'weight_total'
),

rows_in_doubt AS MATERIALIZED (
    SELECT *
    FROM rows
    SEMI JOIN parts_in_doubt
        ON charge_date IS NOT DISTINCT FROM day_in_doubt
        AND line_id IS NOT DISTINCT FROM line_in_doubt
        AND part IS NOT DISTINCT FROM part_in_doubt
),

-- 1. Each row by itself. Each number as a DOUBLE, the product and the quotient are off by a factor within 2^-53 of 1:
--    together by less than 1e-15 of the part's amount. An exact amount is less than a unit from the exact share.
row_problems AS (
    SELECT
        *,
        CASE WHEN weight_after <= weight_total AND part_amount IS NOT NULL THEN 'amount' ELSE 'weight' END AS problem
    FROM rows_in_doubt
    WHERE NOT coalesce(
        weight_after <= weight_total
        AND abs(amount::DOUBLE - near_part_amount * weight / weight_total)
        <= 1.001e-12 + abs(near_part_amount) * 2e-15,
        FALSE
    )
),

-- 2. The rows of each part together.
sorted_rows AS (
    SELECT
        *,
        abs(part_amount) >= weight_total * 0.000000000001 AS has_all_rows,
        coalesce(lag(weight_after) OVER by_weight, 0) AS previous_after,
        lead(weight_before) OVER by_weight IS NULL AS is_last,
        min(weight_total) OVER by_part <> max(weight_total) OVER by_part AS has_several_totals,
        min(part_amount) OVER by_part <> max(part_amount) OVER by_part AS has_several_amounts
    FROM rows_in_doubt
    WHERE weight_after <= weight_total
    WINDOW
        by_part AS (PARTITION BY tenant_id, charge_date, line_id, part),
        by_weight AS (
            PARTITION BY tenant_id, charge_date, line_id, part
            ORDER BY weight_before, weight_after, identity_id
        )
),

part_problems AS (
    SELECT
        *,
        CASE
            WHEN has_several_totals THEN 'weight_total'
            WHEN has_several_amounts THEN 'part_amount'
            WHEN weight_before < previous_after THEN 'overlap'
            WHEN has_all_rows AND weight_before > previous_after THEN 'gap'
            WHEN has_all_rows AND is_last AND weight_after < weight_total THEN 'gap'
        END AS problem
    FROM sorted_rows
)

SELECT
    tenant_id,
    charge_date,
    line_id,
    part,
    identity_id,
    problem,
    amount,
    part_amount,
    weight_before,
    weight,
    weight_total
FROM row_problems

UNION ALL

SELECT
    tenant_id,
    charge_date,
    line_id,
    part,
    identity_id,
    problem,
    amount,
    part_amount,
    weight_before,
    weight,
    weight_total
FROM part_problems
WHERE problem IS NOT NULL

ORDER BY tenant_id, charge_date, line_id, part, identity_id, problem;
