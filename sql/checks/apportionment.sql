-- Every amount is its part's amount apportioned by the row's weights, to the last digit.
--
-- A row of the result is one chargeback row whose amount is another than `expected`. Rows whose weights are none are left
-- to weight_total. This recomputes the whole ledger: `prorata check` runs it; a run, which has just calculated the rows,
-- is content with weight_total, which compares each amount in floating point.
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

-- In units of 1e-12. Up to a million, |part_amount| fits in BIGINT; the 12 decimals, as a DOUBLE
--    and times 1e12, are off by less than 0.001, so rounding gives them back exactly.
small_rows AS (
    SELECT
        *,
        trunc(abs(part_amount)::DECIMAL(18, 12))::BIGINT * 1000000000000
        + round((abs(part_amount)::DECIMAL(18, 12) % 1::DECIMAL(18, 12))::DOUBLE * 1e12)::BIGINT AS units
    FROM rows
    WHERE part_amount BETWEEN -999999 AND 999999
),

-- A total below 2^31: once what divides evenly is taken out, the products fit in BIGINT too.
narrow_rows AS (
    SELECT
        *,
        units // nullif(weight_total, 0) AS quotient,
        units % nullif(weight_total, 0) AS remainder
    FROM small_rows
    WHERE weight_total < 2147483648
),

narrow_amounts AS (
    SELECT
        *,
        CASE
            WHEN weight_after <= weight_total
                THEN quotient * weight
                    + remainder * weight_after // weight_total
                    - remainder * weight_before // weight_total
        END AS expected
    FROM narrow_rows
),

-- A larger one: without taking anything out, the amount is the difference of floor(units * weight_after / weight_total)
-- and floor(units * weight_before / weight_total). HUGEINT holds these products, but divides slowly. So a DOUBLE
-- guesses the floor; HUGEINT tells how far off the guess is, mostly not at all or by one, and divides for the others.
guesses AS (
    SELECT
        *,
        CASE
            WHEN weight_after <= weight_total THEN floor(units::DOUBLE * weight_before / weight_total)::BIGINT
        END AS before_guess,
        CASE
            WHEN weight_after <= weight_total THEN floor(units::DOUBLE * weight_after / weight_total)::BIGINT
        END AS after_guess
    FROM small_rows
    WHERE weight_total >= 2147483648
),

remainders AS (
    SELECT
        *,
        units::HUGEINT * weight_before - before_guess::HUGEINT * weight_total AS before_remainder,
        units::HUGEINT * weight_after - after_guess::HUGEINT * weight_total AS after_remainder
    FROM guesses
),

wide_amounts AS (
    SELECT
        *,
        CASE
            WHEN weight_after <= weight_total
                THEN CASE
                    WHEN after_remainder BETWEEN 0 AND weight_total - 1 THEN after_guess
                    WHEN after_remainder BETWEEN -weight_total AND -1 THEN after_guess - 1
                    WHEN after_remainder - weight_total BETWEEN 0 AND weight_total - 1 THEN after_guess + 1
                    ELSE (units::HUGEINT * weight_after // weight_total)::BIGINT
                END
                - CASE
                    WHEN before_remainder BETWEEN 0 AND weight_total - 1 THEN before_guess
                    WHEN before_remainder BETWEEN -weight_total AND -1 THEN before_guess - 1
                    WHEN before_remainder - weight_total BETWEEN 0 AND weight_total - 1 THEN before_guess + 1
                    ELSE (units::HUGEINT * weight_before // weight_total)::BIGINT
                END
        END AS expected
    FROM remainders
),

-- An amount beyond a million: HUGEINT throughout, again without what divides evenly. (Each comparison by itself is
-- answered by a file's dictionary; both with OR would read every column.)
large_rows AS (
    SELECT *
    FROM rows
    WHERE part_amount > 999999

    UNION ALL

    SELECT *
    FROM rows
    WHERE part_amount < -999999
),

large_units AS (
    SELECT
        *,
        trunc(abs(part_amount))::HUGEINT * 1000000000000
        + round((abs(part_amount) % 1)::DOUBLE * 1e12)::HUGEINT AS units
    FROM large_rows
),

large_amounts AS (
    SELECT
        *,
        CASE
            WHEN weight_after <= weight_total
                THEN units // weight_total * weight
                    + units % weight_total * weight_after // weight_total
                    - units % weight_total * weight_before // weight_total
        END AS expected
    FROM large_units
),

wrong_rows AS (
    SELECT * EXCLUDE (units, quotient, remainder, expected), sign(part_amount) * expected * 0.000000000001 AS expected
    FROM narrow_amounts
    WHERE expected IS NOT NULL AND amount IS DISTINCT FROM sign(part_amount) * expected * 0.000000000001

    UNION ALL

    SELECT
        * EXCLUDE (units, before_guess, after_guess, before_remainder, after_remainder, expected),
        sign(part_amount) * expected * 0.000000000001 AS expected
    FROM wide_amounts
    WHERE expected IS NOT NULL AND amount IS DISTINCT FROM sign(part_amount) * expected * 0.000000000001

    UNION ALL

    SELECT * EXCLUDE (units, expected), sign(part_amount) * expected * 0.000000000001 AS expected
    FROM large_amounts
    WHERE expected IS NOT NULL AND amount IS DISTINCT FROM sign(part_amount) * expected * 0.000000000001
)

SELECT
    tenant_id,
    charge_date,
    line_id,
    part,
    identity_id,
    amount,
    expected,
    part_amount,
    weight_before,
    weight,
    weight_total
FROM wrong_rows
ORDER BY tenant_id, charge_date, line_id, part, identity_id;
